// The matrix unit of some processors (Intel's AMX): registers of 16 rows of 64 bytes, and products of bfloat16 among
// them.
#pragma once

#include <cstdint>
#include <cstring>

#include "sampling.h"

namespace flowfuse {

constexpr int kMatrixRows = 16;       // of a register
constexpr int kMatrixRowBytes = 64;   // 16 float32 or 32 bfloat16
constexpr int kMatrixDepth = 32;      // channels that one product sums over
constexpr int kMatrixRegisters = 8;

// While it lives, the registers of this thread have their full shape. It must have been allowed (cpu/dispatch.cpp).
//
// Registers are named by constants; memory needs no alignment.
#if FLOWFUSE_NO_ASSEMBLY
class MatrixUnit {
 public:
  template <int kRegister>
  void load(const void* from, int64_t row_bytes) {
    for (int row = 0; row < kMatrixRows; ++row) {
      std::memcpy(registers_[kRegister][row], static_cast<const char*>(from) + row * row_bytes, kMatrixRowBytes);
    }
  }
  template <int kRegister>
  void store(void* to, int64_t row_bytes) const {
    for (int row = 0; row < kMatrixRows; ++row) {
      std::memcpy(static_cast<char*>(to) + row * row_bytes, registers_[kRegister][row], kMatrixRowBytes);
    }
  }
  template <int kRegister>
  void clear() {
    std::memset(registers_[kRegister], 0, sizeof registers_[kRegister]);
  }
  template <int kSum, int kRows, int kColumns>
  void multiply_add() {
    for (int row = 0; row < kMatrixRows; ++row) {
      for (int column = 0; column < kMatrixRows; ++column) {
        for (int pair = 0; pair < kMatrixRows; ++pair) {
          for (int half = 0; half < 2; ++half) {
            registers_[kSum][row][column] +=
                value(registers_[kRows][row][pair], half) * value(registers_[kColumns][pair][column], half);
          }
        }
      }
    }
  }

 private:
  // One of the two bfloat16 in the bits of a float.
  static float value(float pair, int half) {
    uint32_t bits;
    std::memcpy(&bits, &pair, sizeof bits);
    bits = half == 0 ? bits << 16 : bits & 0xffff0000u;
    std::memcpy(&pair, &bits, sizeof pair);
    return pair;
  }

  float registers_[kMatrixRegisters][kMatrixRows][kMatrixRows];
};
#else
class MatrixUnit {
 public:
  MatrixUnit() {
    struct {
      uint8_t palette = 1, rest[15] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int i = 0; i < kMatrixRegisters; ++i) {
      shapes.row_bytes[i] = kMatrixRowBytes;
      shapes.rows[i] = kMatrixRows;
    }
    asm volatile("ldtilecfg %0" : : "m"(shapes));
  }
  ~MatrixUnit() { asm volatile("tilerelease"); }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;

  template <int kRegister>
  FLOWFUSE_INLINE void load(const void* from, int64_t row_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(kRegister) : "memory");
  }
  template <int kRegister>
  FLOWFUSE_INLINE void store(void* to, int64_t row_bytes) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_bytes), "i"(kRegister) : "memory");
  }
  template <int kRegister>
  FLOWFUSE_INLINE void clear() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kRegister));
  }
  // sum[i][j] += the products over all channels of rows[i] and of columns[.][j], in which pairs of channels lie
  // together. (Denormals count as 0.)
  template <int kSum, int kRows, int kColumns>
  FLOWFUSE_INLINE void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kRows), "i"(kColumns));
  }
};
#endif

}  // namespace flowfuse
