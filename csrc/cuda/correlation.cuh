// What the kernels of the correlation volume and of the look-ups share.
#pragma once

#include <type_traits>

namespace flowfuse {

// Features F are half, bfloat16, float or double; sums are float, of double double.
template <class F>
using Sum = std::conditional_t<std::is_same_v<F, double>, double, float>;

}  // namespace flowfuse
