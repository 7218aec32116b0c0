// Least-squares trajectories: one thread a pixel, whose small system stays in registers.
#include <optional>

#include "cuda/launch.cuh"
#include "optional_tensors.h"
#include "operators/fit_trajectories.h"

namespace flowfuse::cuda {
namespace {

__device__ __forceinline__ float exponential(float x) { return ::expf(x); }
__device__ __forceinline__ double exponential(double x) { return ::exp(x); }

// kDegree: the number of control points, or more than it.
template <class T, int kDegree>
__global__ void __launch_bounds__(kThreads) fit_pixels(TrajectoryFit<T> params) {
  const int degree = kDegree < kMostControlPoints ? kDegree : static_cast<int>(params.degree);
  const T trust = exponential(params.log_trust[0]), bend = exponential(params.log_stiffness[0]);
  const int64_t items = params.batch * params.plane;
  for (int64_t index = first_item(); index < items; index += item_step()) {
    const int64_t b = index / params.plane, pixel = index % params.plane;
    const auto trust_of = [&](int64_t p) {
      const T value = trust * params.match(b, p, 2)[pixel];
      return params.scores == nullptr ? value : value + params.scores[(b * params.pairs + p) * params.plane + pixel];
    };
    T top = trust_of(0), total = 0;
    for (int64_t p = 1; p < params.pairs; ++p) top = larger(top, trust_of(p));
    // Of the upper half, and of both right sides; divided by the total at the end.
    T normal[kDegree][kDegree], right[kDegree][2];
#pragma unroll
    for (int i = 0; i < degree; ++i) {
#pragma unroll
      for (int j = i; j < degree; ++j) normal[i][j] = 0;
      right[i][0] = right[i][1] = 0;
    }
    for (int64_t p = 0; p < params.pairs; ++p) {
      const T share = exponential(trust_of(p) - top);
      const T x = params.match(b, p, 0)[pixel], y = params.match(b, p, 1)[pixel];
      total += share;
#pragma unroll
      for (int i = 0; i < degree; ++i) {
        const T weighted = share * params.basis[p * degree + i];
#pragma unroll
        for (int j = i; j < degree; ++j) normal[i][j] += weighted * params.basis[p * degree + j];
        right[i][0] += weighted * x;
        right[i][1] += weighted * y;
      }
    }
#pragma unroll
    for (int i = 0; i < degree; ++i) {
#pragma unroll
      for (int j = i; j < degree; ++j) {
        normal[i][j] = normal[i][j] / total + bend * params.stiffness[i * degree + j];
      }
      right[i][0] /= total;
      right[i][1] /= total;
    }
    // Elimination without pivots: the matrix is symmetric and positive definite.
#pragma unroll
    for (int k = 0; k < degree; ++k) {
      const T inverse = 1 / normal[k][k];
#pragma unroll
      for (int i = k + 1; i < degree; ++i) {
        const T factor = normal[k][i] * inverse;
#pragma unroll
        for (int j = i; j < degree; ++j) normal[i][j] -= factor * normal[k][j];
        right[i][0] -= factor * right[k][0];
        right[i][1] -= factor * right[k][1];
      }
    }
#pragma unroll
    for (int k = degree - 1; k >= 0; --k) {
#pragma unroll
      for (int axis = 0; axis < 2; ++axis) {
        T value = right[k][axis];
#pragma unroll
        for (int j = k + 1; j < degree; ++j) value -= normal[k][j] * right[j][axis];
        right[k][axis] = value / normal[k][k];
        params.change[((b * degree + k) * 2 + axis) * params.plane + pixel] = right[k][axis];
      }
    }
  }
}

template <class T>
void run(const DeviceCall& call, const TrajectoryFit<T>& params) {
  const auto kernel = params.degree == 1   ? fit_pixels<T, 1>
                      : params.degree == 2 ? fit_pixels<T, 2>
                      : params.degree == 3 ? fit_pixels<T, 3>
                      : params.degree == 4 ? fit_pixels<T, 4>
                                           : fit_pixels<T, kMostControlPoints>;
  call.launch(kernel, blocks_for(params.batch * params.plane), kThreads, 0, params);
}

Tensor fit_trajectories(Tensor matches, std::optional<Tensor> scores, Tensor basis, Tensor stiffness, Tensor log_trust,
                        Tensor log_stiffness) {
  const char* op = "fit_trajectories";
  check_fit_trajectories(op, matches, scores, basis, stiffness, log_trust, log_stiffness);
  const DeviceCall call(op, matches);
  const ScalarType dtype = matches.scalar_type();
  const int64_t batch = matches.size(0), height = matches.size(3), width = matches.size(4);
  const Tensor change = allocate(op, matches, {batch, basis.size(1), 2, height, width}, dtype);
  if (change.numel() == 0) return change;
  const Tensor values = converted(matches, dtype), weights = converted(basis, dtype);
  const Tensor bend = converted(stiffness, dtype);
  convert(scores, dtype);
  const auto fit = [&](auto zero) {
    using T = decltype(zero);
    run(call, TrajectoryFit<T>{data<T>(values), data_or_null<T>(scores), data<T>(weights), data<T>(bend),
                               data<T>(log_trust), data<T>(log_stiffness), mutable_data<T>(change), batch,
                               matches.size(1), basis.size(1), height * width});
  };
  if (dtype == ScalarType::Double) {
    fit(double{});
  } else {
    fit(float{});
  }
  return change;
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("fit_trajectories", TORCH_BOX(&flowfuse::cuda::fit_trajectories));
}
