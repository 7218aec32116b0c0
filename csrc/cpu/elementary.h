// Exponential and logarithm that the compiler can vectorize for every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "portable.h"

namespace flowfuse::cpu {

FLOWFUSE_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

FLOWFUSE_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// ln 2 in two parts: products of the first with exponents of floats are exact.
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;

// e^x for x <= 88, within 2 units in the last place; 0 below -87.7. NaN stays NaN.
// Cody-Waite reduction to |r| <= ln 2 / 2 and a minimax polynomial.
FLOWFUSE_INLINE float exponential(float x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, the low bits of the sum
  const float bounded = x < -88.0f ? -88.0f : x;
  const float shifted = bounded * 1.44269504f + kRounder;
  const float n = shifted - kRounder;
  const float r = (bounded - n * kLn2High) - n * kLn2Low;
  float value = 1.3814539e-3f;
  value = value * r + 8.3687454e-3f;
  value = value * r + 4.1668389e-2f;
  value = value * r + 0.16666521f;
  value = value * r + 0.49999994f;
  value = value * r + 1.0f;
  value = value * r + 1.0f;
  const float scale = float_of((bits_of(shifted) << 23) + bits_of(1.0f));  // 2^n, and 0 for n = -127
  return value * scale;
}

FLOWFUSE_INLINE double exponential(double x) { return __builtin_exp(x); }

// ln x for normal x > 0, within 2 units in the last place (beside 1, of 2^-24); infinity and NaN stay.
// x = 2^n m with m in [sqrt(1/2), sqrt(2)), and the polynomial of Cephes' logf in m - 1.
FLOWFUSE_INLINE float logarithm(float x) {
  const uint32_t bits = bits_of(x);
  const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;  // from the bits of sqrt(1/2)
  const float n = static_cast<float>(exponent);
  const float m = float_of(bits - (static_cast<uint32_t>(exponent) << 23)) - 1.0f;
  float value = 7.0376836292e-2f;
  value = value * m - 1.1514610310e-1f;
  value = value * m + 1.1676998740e-1f;
  value = value * m - 1.2420140846e-1f;
  value = value * m + 1.4249322787e-1f;
  value = value * m - 1.6668057665e-1f;
  value = value * m + 2.0000714765e-1f;
  value = value * m - 2.4999993993e-1f;
  value = value * m + 3.3333331174e-1f;
  const float square = m * m;
  value = m + (n * kLn2Low + (value * m - 0.5f) * square);
  value = value + n * kLn2High;
  return x <= 3.40282347e38f ? value : x;
}

FLOWFUSE_INLINE double logarithm(double x) { return __builtin_log(x); }

// x^2.4 for normal x > 0, within 8 * 2^-24 of its value; infinity and NaN stay.
// As (x y)^3 with y = x^(-1/5), which begins with a line through the bits, 3.2 % off. With r = 1 - x y^5 it is
// y (1 - r)^(-1/5): a step by the series to r^4, then one to r.
FLOWFUSE_INLINE float power_2_4(float x) {
  const float finite = x < 1e38f ? x : 1e38f;
  float y = float_of(static_cast<uint32_t>(
      static_cast<int32_t>(1277920000.0f - 0.2f * static_cast<float>(static_cast<int32_t>(bits_of(finite))))));
  float square = y * y, rest = 1.0f - finite * (square * square * y);
  y = y + y * rest * (0.2f + rest * (0.12f + rest * (0.088f + rest * 0.0704f)));
  square = y * y;
  rest = 1.0f - finite * (square * square * y);
  y = y + y * rest * 0.2f;
  const float root = x * y;
  return root * root * root;
}

FLOWFUSE_INLINE double power_2_4(double x) { return __builtin_pow(x, 2.4); }

}  // namespace flowfuse::cpu
