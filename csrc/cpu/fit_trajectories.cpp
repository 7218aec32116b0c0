// Least-squares trajectories: the small systems of a block of pixels are solved side by side, a pixel a lane.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/elementary.h"
#include "operators/fit_trajectories.h"
#include "optional_tensors.h"
#include "tensors.h"

namespace flowfuse::cpu {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kBlock = 64;  // pixels handled together

// Rows of kBlock numbers: shares of the pairs [P], the normal matrix [n, n], its right sides [n, 2].
constexpr int64_t scratch_rows(int64_t pairs, int64_t degree) { return pairs + degree * degree + 2 * degree; }

template <class T>
struct Factors {
  T trust, stiffness;
};

// The shares of all pairs, a softmax of what they are trusted; pixels past `count` see zeros.
template <class T>
FLOWFUSE_INLINE void share_trust(const TrajectoryFit<T>& params, int64_t b, int64_t first, int64_t count, T trust,
                                 T* shares) {
  T top[kBlock], total[kBlock];
  for (int64_t p = 0; p < params.pairs; ++p) {
    const T* certainty = params.match(b, p, 2) + first;
    T* share = shares + p * kBlock;
    for (int64_t x = 0; x < count; ++x) share[x] = trust * certainty[x];
    for (int64_t x = count; x < kBlock; ++x) share[x] = T(0);
    if (params.scores != nullptr) {
      const T* scores = params.scores + (b * params.pairs + p) * params.plane + first;
      for (int64_t x = 0; x < count; ++x) share[x] += scores[x];
    }
    for (int64_t x = 0; x < kBlock; ++x) top[x] = p == 0 || share[x] > top[x] ? share[x] : top[x];
  }
  for (int64_t x = 0; x < kBlock; ++x) total[x] = T(0);
  for (int64_t p = 0; p < params.pairs; ++p) {
    T* share = shares + p * kBlock;
#pragma GCC ivdep
    for (int64_t x = 0; x < kBlock; ++x) {
      share[x] = exponential(share[x] - top[x]);
      total[x] += share[x];
    }
  }
  for (int64_t p = 0; p < params.pairs; ++p) {
    T* share = shares + p * kBlock;
    for (int64_t x = 0; x < kBlock; ++x) share[x] /= total[x];
  }
}

// to += factor * from * other, of kBlock numbers each.
template <class T>
FLOWFUSE_INLINE void add_product(T factor, const T* from, const T* other, int64_t count, T* to) {
#pragma GCC ivdep
  for (int64_t x = 0; x < count; ++x) to[x] += factor * from[x] * other[x];
}

template <class T>
FLOWFUSE_INLINE void fit_block(const TrajectoryFit<T>& params, const Factors<T>& factors, int64_t b, int64_t first,
                               int64_t count, T* scratch) {
  const int64_t degree = params.degree;
  T* shares = scratch;
  T* normal = shares + params.pairs * kBlock;
  T* right = normal + degree * degree * kBlock;
  share_trust(params, b, first, count, factors.trust, shares);
  for (int64_t i = 0; i < degree; ++i) {
    for (int64_t j = i; j < degree; ++j) {  // the upper half is enough
      T* entry = normal + (i * degree + j) * kBlock;
      for (int64_t x = 0; x < kBlock; ++x) entry[x] = factors.stiffness * params.stiffness[i * degree + j];
      for (int64_t p = 0; p < params.pairs; ++p) {
        const T product = params.basis[p * degree + i] * params.basis[p * degree + j];
        const T* share = shares + p * kBlock;
#pragma GCC ivdep
        for (int64_t x = 0; x < kBlock; ++x) entry[x] += product * share[x];
      }
    }
    for (int64_t axis = 0; axis < 2; ++axis) {
      T* entry = right + (2 * i + axis) * kBlock;
      for (int64_t x = 0; x < kBlock; ++x) entry[x] = T(0);
      for (int64_t p = 0; p < params.pairs; ++p) {
        add_product(params.basis[p * degree + i], shares + p * kBlock, params.match(b, p, axis) + first, count, entry);
      }
    }
  }
  // Elimination without pivots: the matrices are symmetric and positive definite.
  for (int64_t k = 0; k < degree; ++k) {
    T inverse[kBlock];
    for (int64_t x = 0; x < kBlock; ++x) inverse[x] = 1 / normal[(k * degree + k) * kBlock + x];
    for (int64_t i = k + 1; i < degree; ++i) {
      T factor[kBlock];
      for (int64_t x = 0; x < kBlock; ++x) factor[x] = normal[(k * degree + i) * kBlock + x] * inverse[x];
      for (int64_t j = i; j < degree; ++j) {
        add_product(T(-1), factor, normal + (k * degree + j) * kBlock, kBlock, normal + (i * degree + j) * kBlock);
      }
      for (int64_t axis = 0; axis < 2; ++axis) {
        add_product(T(-1), factor, right + (2 * k + axis) * kBlock, kBlock, right + (2 * i + axis) * kBlock);
      }
    }
  }
  for (int64_t k = degree - 1; k >= 0; --k) {
    const T* diagonal = normal + (k * degree + k) * kBlock;
    for (int64_t axis = 0; axis < 2; ++axis) {
      T* entry = right + (2 * k + axis) * kBlock;
      for (int64_t j = k + 1; j < degree; ++j) {
        add_product(T(-1), normal + (k * degree + j) * kBlock, right + (2 * j + axis) * kBlock, kBlock, entry);
      }
      for (int64_t x = 0; x < kBlock; ++x) entry[x] /= diagonal[x];
      T* to = params.change + ((b * degree + k) * 2 + axis) * params.plane + first;
      for (int64_t x = 0; x < count; ++x) to[x] = entry[x];
    }
  }
}

template <class T>
void run(const TrajectoryFit<T>& params) {
  const auto exponential_of = [](const T* value) {
    return static_cast<T>(__builtin_exp(static_cast<double>(value[0])));
  };
  const Factors<T> factors{exponential_of(params.log_trust), exponential_of(params.log_stiffness)};
  const int64_t blocks = (params.plane + kBlock - 1) / kBlock;
  parallel_for(0, params.batch * blocks, 16, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(static_cast<size_t>(scratch_rows(params.pairs, params.degree) * kBlock));
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index % blocks * kBlock, count = std::min(kBlock, params.plane - first);
      FLOWFUSE_VARIANTS(fit_block(params, factors, index / blocks, first, count, scratch.data()))
    }
  });
}

Tensor fit_trajectories(Tensor matches, std::optional<Tensor> scores, Tensor basis, Tensor stiffness, Tensor log_trust,
                        Tensor log_stiffness) {
  const char* op = "fit_trajectories";
  check_fit_trajectories(op, matches, scores, basis, stiffness, log_trust, log_stiffness);
  const ScalarType dtype = matches.scalar_type();
  const int64_t batch = matches.size(0), height = matches.size(3), width = matches.size(4);
  const Tensor change = allocate(op, matches, {batch, basis.size(1), 2, height, width}, dtype);
  if (change.numel() == 0) return change;
  const Tensor values = converted(matches, dtype), weights = converted(basis, dtype);
  const Tensor bend = converted(stiffness, dtype);
  convert(scores, dtype);
  const auto fit = [&](auto zero) {
    using T = decltype(zero);
    run(TrajectoryFit<T>{data<T>(values), data_or_null<T>(scores), data<T>(weights), data<T>(bend), data<T>(log_trust),
                         data<T>(log_stiffness), mutable_data<T>(change), batch, matches.size(1), basis.size(1),
                         height * width});
  };
  if (dtype == ScalarType::Double) {
    fit(double{});
  } else {
    fit(float{});
  }
  return change;
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) { m.impl("fit_trajectories", TORCH_BOX(&flowfuse::cpu::fit_trajectories)); }
