// An exponential that the compiler can vectorize for every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "sampling.h"

namespace flowfuse {

// e^x for x <= 0 (what a softmax needs), within 2 units in the last place; 0 below -87. NaN stays NaN.
// Cody-Waite reduction to |r| <= ln 2 / 2 and a polynomial of degree 6 with Taylor coefficients.
FLOWFUSE_INLINE float exponential(float x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const bool under = x < -87.0f;
  const float bounded = under ? -87.0f : x;
  const float shifted = bounded * 1.44269504f + kRounder;
  const float n = shifted - kRounder;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float value = 1.0f / 720;
  value = value * r + 1.0f / 120;
  value = value * r + 1.0f / 24;
  value = value * r + 1.0f / 6;
  value = value * r + 0.5f;
  value = value * r + 1.0f;
  value = value * r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const uint32_t exponent = static_cast<uint32_t>(bits - 0x4b400000 + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return under ? 0.0f : value * scale;
}

FLOWFUSE_INLINE double exponential(double x) { return __builtin_exp(x); }

}  // namespace flowfuse
