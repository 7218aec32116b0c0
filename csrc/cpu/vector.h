// Vectors as wide as the registers of a CPU variant, in the vector extension of gcc and clang. The code that uses
// them is written once and compiled for each width; what a compiler makes of a loop is not left to chance.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "portable.h"

namespace flowfuse::cpu {

template <class T, int kBytes>
struct VectorType {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "lanes are float, double or integers of their size");
  typedef T Type __attribute__((vector_size(kBytes)));
  using Lane = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Lane Index __attribute__((vector_size(kBytes)));
};

template <class T, int kBytes>
using Vector = typename VectorType<T, kBytes>::Type;

template <class T, int kBytes>
constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));

// Lanes of float32 in the widest vector: loops over multiples of them have no remainder under any instruction set.
constexpr int64_t kMostLanes = 16;

FLOWFUSE_INLINE int64_t whole_lanes(int64_t count) { return (count + kMostLanes - 1) / kMostLanes * kMostLanes; }

// Vectors are passed by reference: by value, their place in a call depends on the instruction set. Memory needs no
// alignment and may be of another type.
template <class V, class T>
FLOWFUSE_INLINE void load(const T* from, V& to) {
  __builtin_memcpy(&to, from, sizeof to);
}

template <class V, class T>
FLOWFUSE_INLINE void store(const V& from, T* to) {
  __builtin_memcpy(to, &from, sizeof from);
}

// Lanes kIndex of a followed by b.
template <class T, int kBytes, int... kIndex>
FLOWFUSE_INLINE void shuffle(const Vector<T, kBytes>& a, const Vector<T, kBytes>& b, Vector<T, kBytes>& out,
                             std::integer_sequence<int, kIndex...>) {
#if defined(__clang__)
  out = __builtin_shufflevector(a, b, kIndex...);
#else
  const typename VectorType<T, kBytes>::Index index{kIndex...};
  out = __builtin_shuffle(a, b, index);
#endif
}

// One step of lane_sums: in groups of lanes, the lower half of a group receives the sums of the halves of a's, the upper
// half those of b's. A blend and one shuffle: lane i of either is lane i of a or b, or that of the group's other half.
constexpr int folded_lane(int lane, int lanes, int group, bool other_half) {
  const bool upper = (lane & group / 2) != 0;
  const int from = other_half ? lane ^ group / 2 : lane;
  return upper ? lanes + from : from;
}

template <class T, int kBytes, int kGroup, int... kLane>
FLOWFUSE_INLINE void fold_groups(const Vector<T, kBytes>& a, const Vector<T, kBytes>& b, Vector<T, kBytes>& out,
                                 std::integer_sequence<int, kLane...>) {
  constexpr int kAll = kLanes<T, kBytes>;
  Vector<T, kBytes> kept, moved;
  shuffle<T, kBytes>(a, b, kept, std::integer_sequence<int, folded_lane(kLane, kAll, kGroup, false)...>{});
  shuffle<T, kBytes>(a, b, moved, std::integer_sequence<int, folded_lane(kLane, kAll, kGroup, true)...>{});
  out = kept + moved;
}

// The sums of the lanes of as many vectors as they have lanes, in their order; `vectors` is overwritten.
template <class T, int kBytes, int kGroup = kLanes<T, kBytes>>
FLOWFUSE_INLINE void lane_sums(Vector<T, kBytes>* vectors, Vector<T, kBytes>& sums) {
  if constexpr (kGroup == 1) {
    sums = vectors[0];
  } else {
    using Lanes = std::make_integer_sequence<int, kLanes<T, kBytes>>;
#pragma GCC unroll 16
    for (int i = 0; i < kGroup / 2; ++i) {
      fold_groups<T, kBytes, kGroup>(vectors[i], vectors[i + kGroup / 2], vectors[i], Lanes{});
    }
    lane_sums<T, kBytes, kGroup / 2>(vectors, sums);
  }
}

}  // namespace flowfuse::cpu
