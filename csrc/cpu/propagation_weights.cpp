// Content attention over neighbours: a row of pixels at a time, whose 9 scores stay in the cache.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/elementary.h"
#include "operators/propagation_weights.h"
#include "tensors.h"

namespace flowfuse::cpu {
namespace {

using torch::stable::parallel_for;

template <class T>
struct Attention {
  AttentionSizes sizes;
  const T* query_key;
  const T* boundary;
  const T* strength;
  T* weights;
  T scale;  // of the products of queries and keys
};

template <class T>
struct AttentionGradient {
  const T* grad;            // of the weights
  T* slopes;                // of the scores [B, S, 9, h, w]
  unsigned char* farthest;  // steps to the strongest stop on the way [B, S, 9, h, w]
  T* grad_query_key;
  T* grad_boundary;
  T* grad_strength;  // of every row [B, h, S, 2]
};

// The strongest stop on the way from each pixel of a row to its neighbour, and how many pixels it is away.
template <class T>
FLOWFUSE_INLINE void strongest_stop(const Attention<T>& params, int64_t b, int64_t y, int neighbour, int64_t distance,
                                    T* strongest, unsigned char* farthest) {
  const AttentionSizes& sizes = params.sizes;
  const T* stop = params.boundary + (2 * b + 1) * sizes.plane();
  const Columns columns = columns_within(distance * column_shift(neighbour), sizes.width);
  const T* here = stop + y * sizes.width;
  for (int64_t x = columns.begin; x < columns.end; ++x) strongest[x] = here[x];
  if (farthest != nullptr) {
    for (int64_t x = 0; x < sizes.width; ++x) farthest[x] = 0;
  }
  if (neighbour == kCentre) return;
  for (int64_t m = 1; m <= distance; ++m) {
    const T* there = stop + (y + m * row_shift(neighbour)) * sizes.width + m * column_shift(neighbour);
    if (farthest != nullptr) {
      for (int64_t x = columns.begin; x < columns.end; ++x) {
        farthest[x] = there[x] > strongest[x] ? static_cast<unsigned char>(m) : farthest[x];
      }
    }
#pragma GCC ivdep
    for (int64_t x = columns.begin; x < columns.end; ++x) {
      strongest[x] = there[x] > strongest[x] ? there[x] : strongest[x];
    }
  }
}

// scratch: 10 rows.
template <class T>
FLOWFUSE_INLINE void attention_row(const Attention<T>& params, int64_t b, int64_t y, T* scratch) {
  const AttentionSizes& sizes = params.sizes;
  const int64_t width = sizes.width;
  const T outside = -static_cast<T>(__builtin_inf());
  T* strongest = scratch + kNeighbours * width;
  for (int64_t s = 0; s < sizes.steps; ++s) {
    const int64_t distance = int64_t{1} << s;
    const T edge_strength = params.strength[2 * s], stop_strength = params.strength[2 * s + 1];
    for (int k = 0; k < kNeighbours; ++k) {
      T* score = scratch + k * width;
      const int64_t row = y + distance * row_shift(k), shift = distance * column_shift(k);
      Columns columns = columns_within(shift, width);
      if (row < 0 || row >= sizes.height) columns = {width, width};
      for (int64_t x = 0; x < columns.begin; ++x) score[x] = outside;
      for (int64_t x = columns.begin; x < columns.end; ++x) score[x] = T(0);
      for (int64_t x = columns.end; x < width; ++x) score[x] = outside;
      if (columns.begin == columns.end) continue;
      for (int64_t c = 0; c < sizes.channels; ++c) {
        const T* query = params.query_key + sizes.row(sizes.query(b, s, c), y);
        const T* key = params.query_key + sizes.row(sizes.key(b, s, c), row) + shift;
#pragma GCC ivdep
        for (int64_t x = columns.begin; x < columns.end; ++x) score[x] += query[x] * key[x];
      }
      strongest_stop(params, b, y, k, distance, strongest, nullptr);
      const T* edge = params.boundary + sizes.row(2 * b, row) + shift;
#pragma GCC ivdep
      for (int64_t x = columns.begin; x < columns.end; ++x) {
        score[x] = score[x] * params.scale + edge_strength * edge[x] - stop_strength * strongest[x];
      }
    }
    T* weights = params.weights + sizes.row(sizes.weight(b, s, 0), y);
    const int64_t plane = sizes.plane();
#pragma GCC ivdep
    for (int64_t x = 0; x < width; ++x) {
      T weight[kNeighbours], top = scratch[kCentre * width + x], sum = T(0);
#pragma GCC unroll 9
      for (int k = 0; k < kNeighbours; ++k) {
        weight[k] = scratch[k * width + x];
        top = weight[k] > top ? weight[k] : top;
      }
#pragma GCC unroll 9
      for (int k = 0; k < kNeighbours; ++k) {
        weight[k] = exponential(weight[k] - top);
        sum += weight[k];
      }
      const T share = 1 / sum;
#pragma GCC unroll 9
      for (int k = 0; k < kNeighbours; ++k) weights[k * plane + x] = weight[k] * share;
    }
  }
}

// Of one row: the gradients of the scores, of the queries and, summed over the row, of the strengths.
// scratch: 1 row.
template <class T>
FLOWFUSE_INLINE void slopes_row(const Attention<T>& params, const AttentionGradient<T>& grads, int64_t b, int64_t y,
                                T* scratch) {
  const AttentionSizes& sizes = params.sizes;
  const int64_t width = sizes.width, plane = sizes.plane();
  for (int64_t s = 0; s < sizes.steps; ++s) {
    const int64_t distance = int64_t{1} << s, first = sizes.row(sizes.weight(b, s, 0), y);
    const T* weights = params.weights + first;
    const T* grad = grads.grad + first;
    T* slopes = grads.slopes + first;
#pragma GCC ivdep
    for (int64_t x = 0; x < width; ++x) {
      T mean = T(0);
#pragma GCC unroll 9
      for (int k = 0; k < kNeighbours; ++k) mean += weights[k * plane + x] * grad[k * plane + x];
#pragma GCC unroll 9
      for (int k = 0; k < kNeighbours; ++k) {
        slopes[k * plane + x] = weights[k * plane + x] * (grad[k * plane + x] - mean);
      }
    }
    for (int64_t c = 0; c < sizes.channels; ++c) {
      T* target = grads.grad_query_key + sizes.row(sizes.query(b, s, c), y);
      for (int64_t x = 0; x < width; ++x) target[x] = T(0);
    }
    T edge_sum = T(0), stop_sum = T(0);
    for (int k = 0; k < kNeighbours; ++k) {
      const T* slope = slopes + k * plane;
      unsigned char* farthest = grads.farthest + first + k * plane;
      const int64_t row = y + distance * row_shift(k), shift = distance * column_shift(k);
      const Columns columns = columns_within(shift, width);
      if (row < 0 || row >= sizes.height || columns.begin == columns.end) continue;
      for (int64_t c = 0; c < sizes.channels; ++c) {
        T* target = grads.grad_query_key + sizes.row(sizes.query(b, s, c), y);
        const T* key = params.query_key + sizes.row(sizes.key(b, s, c), row) + shift;
#pragma GCC ivdep
        for (int64_t x = columns.begin; x < columns.end; ++x) target[x] += params.scale * slope[x] * key[x];
      }
      strongest_stop(params, b, y, k, distance, scratch, farthest);
      const T* edge = params.boundary + sizes.row(2 * b, row) + shift;
      for (int64_t x = columns.begin; x < columns.end; ++x) {
        edge_sum += slope[x] * edge[x];
        stop_sum -= slope[x] * scratch[x];
      }
    }
    T* sums = grads.grad_strength + ((b * sizes.height + y) * sizes.steps + s) * 2;
    sums[0] = edge_sum;
    sums[1] = stop_sum;
  }
}

// Of one row: the gradients of the keys and of the boundary, gathered from the pixels whose ways come by.
template <class T>
FLOWFUSE_INLINE void gather_row(const Attention<T>& params, const AttentionGradient<T>& grads, int64_t b, int64_t y) {
  const AttentionSizes& sizes = params.sizes;
  const int64_t width = sizes.width;
  T* edge = grads.grad_boundary + sizes.row(2 * b, y);
  T* stop = grads.grad_boundary + sizes.row(2 * b + 1, y);
  for (int64_t x = 0; x < width; ++x) edge[x] = stop[x] = T(0);
  for (int64_t s = 0; s < sizes.steps; ++s) {
    const int64_t distance = int64_t{1} << s;
    const T edge_strength = params.strength[2 * s], stop_strength = params.strength[2 * s + 1];
    for (int64_t c = 0; c < sizes.channels; ++c) {
      T* target = grads.grad_query_key + sizes.row(sizes.key(b, s, c), y);
      for (int64_t x = 0; x < width; ++x) target[x] = T(0);
    }
    for (int k = 0; k < kNeighbours; ++k) {
      const int64_t farthest_step = k == kCentre ? 0 : distance;
      for (int64_t m = 0; m <= farthest_step; ++m) {
        const int64_t from = y - m * row_shift(k), back = -m * column_shift(k);
        if (from < 0 || from >= sizes.height) continue;
        // Ways that leave the image have weight 0 and so no slope, and no farthest either.
        const int64_t end = from + distance * row_shift(k);
        if (end < 0 || end >= sizes.height) continue;
        const Columns columns = columns_within(back, width);
        const int64_t place = sizes.row(sizes.weight(b, s, k), from) + back;
        const T* slope = grads.slopes + place;
        const unsigned char* farthest = grads.farthest + place;
        const Columns whole = columns_within(distance * column_shift(k), width);  // of `from`
        const int64_t begin = columns.begin > whole.begin - back ? columns.begin : whole.begin - back;
        const int64_t last = columns.end < whole.end - back ? columns.end : whole.end - back;
        for (int64_t x = begin; x < last; ++x) {
          stop[x] -= farthest[x] == m ? stop_strength * slope[x] : T(0);
        }
      }
      const int64_t from = y - distance * row_shift(k), back = -distance * column_shift(k);
      if (from < 0 || from >= sizes.height) continue;
      const Columns columns = columns_within(back, width);
      const T* slope = grads.slopes + sizes.row(sizes.weight(b, s, k), from) + back;
#pragma GCC ivdep
      for (int64_t x = columns.begin; x < columns.end; ++x) edge[x] += edge_strength * slope[x];
      for (int64_t c = 0; c < sizes.channels; ++c) {
        T* target = grads.grad_query_key + sizes.row(sizes.key(b, s, c), y);
        const T* query = params.query_key + sizes.row(sizes.query(b, s, c), from) + back;
#pragma GCC ivdep
        for (int64_t x = columns.begin; x < columns.end; ++x) target[x] += params.scale * slope[x] * query[x];
      }
    }
  }
}

template <class T>
Attention<T> prepare(const Tensor& query_key, const Tensor& boundary, const Tensor& strength, const Tensor& weights) {
  Attention<T> params{attention_sizes(query_key, strength),
                      data<T>(query_key),
                      data<T>(boundary),
                      data<T>(strength),
                      mutable_data<T>(weights),
                      T(0)};
  params.scale = 1 / static_cast<T>(__builtin_sqrt(static_cast<double>(params.sizes.channels)));
  return params;
}

// Calls work(b, y, scratch) for every row of every item, with so many rows of scratch.
template <class T, class Work>
void for_rows(const AttentionSizes& sizes, int64_t scratch_rows, const Work& work) {
  parallel_for(0, sizes.batch * sizes.height, 1, [&](int64_t first, int64_t last) {
    std::vector<T> scratch(static_cast<size_t>(scratch_rows * sizes.width));
    for (int64_t index = first; index < last; ++index) {
      work(index / sizes.height, index % sizes.height, scratch.data());
    }
  });
}

template <class T>
void run_forward(const Tensor& query_key, const Tensor& boundary, const Tensor& strength, const Tensor& weights) {
  const Attention<T> params = prepare<T>(query_key, boundary, strength, weights);
  for_rows<T>(params.sizes, kNeighbours + 1,
              [&](int64_t b, int64_t y, T* scratch) { FLOWFUSE_VARIANTS(attention_row(params, b, y, scratch)) });
}

template <class T>
void run_backward(const Tensor& grad, const Tensor& query_key, const Tensor& boundary, const Tensor& strength,
                  const Tensor& weights, const Tensor& grad_query_key, const Tensor& grad_boundary,
                  const Tensor& grad_strength) {
  const Attention<T> params = prepare<T>(query_key, boundary, strength, weights);
  const char* op = "propagation_weights_backward";
  const Tensor slopes = allocate(op, weights, shape_of(weights), weights.scalar_type());
  const Tensor farthest = allocate(op, weights, shape_of(weights), ScalarType::Byte);
  const AttentionGradient<T> grads{data<T>(grad),
                                   mutable_data<T>(slopes),
                                   mutable_data<unsigned char>(farthest),
                                   mutable_data<T>(grad_query_key),
                                   mutable_data<T>(grad_boundary),
                                   mutable_data<T>(grad_strength)};
  for_rows<T>(params.sizes, 1,
              [&](int64_t b, int64_t y, T* scratch) { FLOWFUSE_VARIANTS(slopes_row(params, grads, b, y, scratch)) });
  for_rows<T>(params.sizes, 0, [&](int64_t b, int64_t y, T*) { FLOWFUSE_VARIANTS(gather_row(params, grads, b, y)) });
}

std::vector<int64_t> weights_shape(const AttentionSizes& sizes) {
  return {sizes.batch, sizes.steps, kNeighbours, sizes.height, sizes.width};
}

Tensor propagation_weights(Tensor query_key, Tensor boundary, Tensor strength) {
  const char* op = "propagation_weights";
  check_propagation_weights(op, query_key, boundary, strength);
  const ScalarType dtype = strength.scalar_type();
  const Tensor weights = allocate(op, query_key, weights_shape(attention_sizes(query_key, strength)), dtype);
  if (weights.numel() == 0) return weights;
  const auto run = dtype == ScalarType::Double ? run_forward<double> : run_forward<float>;
  run(converted(query_key, dtype), converted(boundary, dtype), converted(strength, dtype), weights);
  return weights;
}

std::tuple<Tensor, Tensor, Tensor> propagation_weights_backward(Tensor grad, Tensor query_key, Tensor boundary,
                                                                Tensor strength, Tensor weights) {
  const char* op = "propagation_weights_backward";
  check_propagation_weights(op, query_key, boundary, strength);
  const AttentionSizes sizes = attention_sizes(query_key, strength);
  const ScalarType dtype = strength.scalar_type();
  check_gradient(op, grad, weights_shape(sizes), dtype, "query_key", query_key);
  check_shape(op, "weights", weights, weights_shape(sizes));
  check_dtype(op, "weights", weights, {dtype});
  const Tensor grad_query_key = allocate(op, query_key, shape_of(query_key), dtype);
  const Tensor grad_boundary = allocate(op, query_key, shape_of(boundary), dtype);
  const Tensor grad_strength = allocate(op, query_key, {sizes.batch, sizes.height, sizes.steps, 2}, dtype);
  if (grad.numel() > 0) {
    const auto run = dtype == ScalarType::Double ? run_backward<double> : run_backward<float>;
    run(converted(grad, dtype), converted(query_key, dtype), converted(boundary, dtype), converted(strength, dtype),
        converted(weights, dtype), grad_query_key, grad_boundary, grad_strength);
  } else {
    Tensor empty_sums = grad_strength;
    torch::stable::zero_(empty_sums);
  }
  return {converted(grad_query_key, query_key.scalar_type()), grad_boundary, grad_strength};
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("propagation_weights", TORCH_BOX(&flowfuse::cpu::propagation_weights));
  m.impl("propagation_weights_backward", TORCH_BOX(&flowfuse::cpu::propagation_weights_backward));
}
