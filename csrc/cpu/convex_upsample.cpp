#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/elementary.h"
#include "cpu/vector.h"
#include "operators/convex_upsample.h"
#include "tensors.h"

namespace flowfuse::cpu {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kBlock = 64;  // coarse pixels of a row handled together
constexpr int64_t kCells = 8;   // fine positions of each coarse pixel handled together
constexpr int64_t kStrip = 16;  // rows for which the same fine positions are handled before others

template <class T, class M>
struct Upsample {
  const T* padded;  // field with a border of zeros [B, D, h + 2, stride + 2]
  const M* mask;    // [B, 9, f, f, h, w]
  T* fine;          // [B, D, f h, f w]
  const T* grad;    // of fine
  M* grad_mask;
  T* parts;       // gradient in the field, by neighbour [B, D, 9, h, stride]
  T* grad_field;  // [B, D, h, w]
  int64_t batch, channels, height, width, factor;
  int64_t stride;  // whole_lanes(width)

  FLOWFUSE_INLINE int64_t cells() const { return factor * factor; }
  FLOWFUSE_INLINE int64_t mask_size() const { return batch * 9 * cells() * height * width; }
  FLOWFUSE_INLINE int64_t mask_offset(int64_t b, int64_t cell, int64_t y) const {  // cell = i f + j
    return ((b * 9 * cells() + cell) * height + y) * width;
  }
  FLOWFUSE_INLINE int64_t neighbour_stride() const { return cells() * height * width; }
  // Neighbour k of pixel (y, 0) in channel d.
  FLOWFUSE_INLINE const T* neighbour(int64_t b, int64_t d, int64_t k, int64_t y) const {
    return padded + ((b * channels + d) * (height + 2) + y + k / 3) * (stride + 2) + k % 3;
  }
  FLOWFUSE_INLINE T* part(int64_t b, int64_t d, int64_t k, int64_t y) const {
    return parts + (((b * channels + d) * 9 + k) * height + y) * stride;
  }
  // Fine pixel (y f + i, j) in channel d.
  FLOWFUSE_INLINE int64_t fine_offset(int64_t b, int64_t d, int64_t cell, int64_t y) const {
    return ((b * channels + d) * factor * height + y * factor + cell / factor) * factor * width + cell % factor;
  }
};

// Pixels x .. x + count of row y. Vectors are whole: the lanes past `count` compute what nothing reads.
struct PixelBlock {
  int64_t b, y, x, count;

  FLOWFUSE_INLINE int64_t lanes() const { return whole_lanes(count); }
};

// Calls work(block, cell, count) for the blocks of rows [first, last), counted through all items, and their fine
// positions, up to kCells of one fine row at a time. Each fine position and neighbour has a plane of its own in the
// mask, a thousand of them: a strip of rows of a few planes comes before the next planes.
template <class Work>
FLOWFUSE_INLINE void for_blocks(int64_t height, int64_t width, int64_t factor, int64_t first, int64_t last,
                                const Work& work) {
  while (first < last) {
    const int64_t b = first / height;
    int64_t end = (b + 1) * height < last ? (b + 1) * height : last;
    if (first + kStrip < end) end = first + kStrip;
    for (int64_t i = 0; i < factor; ++i) {
      for (int64_t j = 0; j < factor; j += kCells) {
        const int64_t cells = factor - j < kCells ? factor - j : kCells;
        for (int64_t row = first; row < end; ++row) {
          for (int64_t x = 0; x < width; x += kBlock) {
            work(PixelBlock{b, row - b * height, x, width - x < kBlock ? width - x : kBlock}, i * factor + j, cells);
          }
        }
      }
    }
    first = end;
  }
}

// Rows of fine positions and neighbours lie far from each other, where no hardware expects them.
template <class M>
FLOWFUSE_INLINE void prefetch(const M* row, int64_t count) {
  for (int64_t x = 0; x < count; x += 64 / int64_t{sizeof(M)}) __builtin_prefetch(row + x);
}

// Softmax over the neighbours inside the field for one fine position of a block's pixels: shares * weights.
template <class T, class M>
FLOWFUSE_INLINE void neighbour_weights(const Upsample<T, M>& params, const PixelBlock& block, int64_t cell,
                                       T weights[9][kBlock], T shares[kBlock]) {
  const T outside = -static_cast<T>(__builtin_inf());
  const int64_t lanes = block.lanes();
  const M* logits[9];
  M copied[9][kBlock];
  for (int64_t k = 0; k < 9; ++k) {
    const int64_t offset = params.mask_offset(block.b, cell, block.y) + k * params.neighbour_stride() + block.x;
    const M* row = params.mask + offset;
    const bool missing = (k < 3 && block.y == 0) || (k >= 6 && block.y == params.height - 1);
    if (missing) {
      for (int64_t x = 0; x < lanes; ++x) copied[k][x] = static_cast<M>(outside);
    } else if (offset + lanes > params.mask_size()) {  // whole vectors would pass the end of the mask
      for (int64_t x = 0; x < lanes; ++x) copied[k][x] = row[x < block.count ? x : 0];
    } else {
      prefetch(row + params.width, block.count);
      logits[k] = row;
      continue;
    }
    logits[k] = copied[k];
  }
  // The columns whose left and right neighbours are missing.
  const int32_t left = static_cast<int32_t>(-block.x);
  const int32_t right = static_cast<int32_t>(params.width - 1 - block.x);
#pragma GCC ivdep
  for (int32_t x = 0; x < static_cast<int32_t>(lanes); ++x) {
    T weight[9], top = outside, sum = T(0);
#pragma GCC unroll 9
    for (int k = 0; k < 9; ++k) {
      const T logit = static_cast<T>(logits[k][x]);
      const bool missing = k % 3 == 0 ? x == left : k % 3 == 2 ? x == right : false;
      weight[k] = missing ? outside : logit;
      top = weight[k] > top ? weight[k] : top;
    }
#pragma GCC unroll 9
    for (int k = 0; k < 9; ++k) {
      weight[k] = exponential(weight[k] - top);
      sum += weight[k];
    }
    shares[x] = 1 / sum;
#pragma GCC unroll 9
    for (int k = 0; k < 9; ++k) weights[k][x] = weight[k];
  }
}

// Moves values[c][x] to or from fine[x * factor + c]. kFactor, where not 0, is the factor, and all cells are moved.
template <int64_t kFactor, class Move>
FLOWFUSE_INLINE void for_fine(int64_t factor, int64_t cells, int64_t count, const Move& move) {
  if (kFactor != 0) factor = cells = kFactor;
  for (int64_t x = 0; x < count; ++x) {
    for (int64_t c = 0; c < cells; ++c) move(c, x, x * factor + c);
  }
}

template <class Move>
FLOWFUSE_INLINE void for_fine(int64_t factor, int64_t cells, int64_t count, const Move& move) {
  if (factor == 8) return for_fine<8>(factor, cells, count, move);
  if (factor == 4) return for_fine<4>(factor, cells, count, move);
  for_fine<0>(factor, cells, count, move);
}

template <class T, class M>
FLOWFUSE_INLINE void upsample_block(const Upsample<T, M>& params, const PixelBlock& block, int64_t first,
                                    int64_t cells) {
  alignas(64) T weights[kCells][9][kBlock], shares[kCells][kBlock], values[kCells][kBlock];
  const int64_t lanes = block.lanes();
  for (int64_t c = 0; c < cells; ++c) neighbour_weights(params, block, first + c, weights[c], shares[c]);
  for (int64_t d = 0; d < params.channels; ++d) {
    const T* top = params.neighbour(block.b, d, 0, block.y) + block.x;
    const int64_t stride = params.stride + 2;
    for (int64_t c = 0; c < cells; ++c) {
#pragma GCC ivdep
      for (int64_t x = 0; x < lanes; ++x) {
        T value = T(0);
#pragma GCC unroll 9
        for (int k = 0; k < 9; ++k) value += weights[c][k][x] * top[k / 3 * stride + k % 3 + x];
        values[c][x] = shares[c][x] * value;
      }
    }
    T* fine = params.fine + params.fine_offset(block.b, d, first, block.y) + block.x * params.factor;
    for_fine(params.factor, cells, block.count,
             [&](int64_t c, int64_t x, int64_t at) FLOWFUSE_INLINE_LAMBDA { fine[at] = values[c][x]; });
  }
}

// With e_k the weights of the neighbours, of which w_k = share e_k is the softmax, g the gradient of a fine pixel times
// its share and s_k = sum_d g_d field_d(k): the gradient of logit k is e_k (s_k - share sum_l e_l s_l), and neighbour k
// in channel d receives e_k g_d.
template <class T, class M>
FLOWFUSE_INLINE void block_backward(const Upsample<T, M>& params, const PixelBlock& block, int64_t first,
                                    int64_t cells) {
  alignas(64) T weights[kCells][9][kBlock], shares[kCells][kBlock], slopes[kCells][9][kBlock], grad[kCells][kBlock];
  const int64_t lanes = block.lanes();
  for (int64_t c = 0; c < cells; ++c) {
    const M* target = params.grad_mask + params.mask_offset(block.b, first + c, block.y) + block.x;
    for (int64_t k = 0; k < 9; ++k) prefetch(target + k * params.neighbour_stride(), block.count);
    neighbour_weights(params, block, first + c, weights[c], shares[c]);
  }
  for (int64_t d = 0; d < params.channels; ++d) {
    for (int64_t c = 0; c < cells; ++c) {
      for (int64_t x = block.count; x < lanes; ++x) grad[c][x] = T(0);
    }
    const T* fine = params.grad + params.fine_offset(block.b, d, first, block.y) + block.x * params.factor;
    for_fine(params.factor, cells, block.count,
             [&](int64_t c, int64_t x, int64_t at) FLOWFUSE_INLINE_LAMBDA { grad[c][x] = shares[c][x] * fine[at]; });
    for (int64_t k = 0; k < 9; ++k) {
      const T* field = params.neighbour(block.b, d, k, block.y) + block.x;
      T* part = params.part(block.b, d, k, block.y) + block.x;
      const auto add = [&](int64_t begin, int64_t count) FLOWFUSE_INLINE_LAMBDA {
        const bool fresh = first + begin == 0;
#pragma GCC ivdep
        for (int64_t x = 0; x < lanes; ++x) {
          const T value = field[x];
          T sum = fresh ? T(0) : part[x];
#pragma GCC unroll 8
          for (int64_t c = begin; c < begin + count; ++c) {
            const T slope = grad[c][x] * value;
            slopes[c][k][x] = d == 0 ? slope : slopes[c][k][x] + slope;
            sum += weights[c][k][x] * grad[c][x];
          }
          part[x] = sum;
        }
      };
      int64_t c = 0;  // several at a time: a part is read and written once for all of them
      for (; c + 8 <= cells; c += 8) add(c, 8);
      for (; c + 4 <= cells; c += 4) add(c, 4);
      for (; c < cells; ++c) add(c, 1);
    }
  }
  for (int64_t c = 0; c < cells; ++c) {
    M* target = params.grad_mask + params.mask_offset(block.b, first + c, block.y) + block.x;
    const int64_t stride = params.neighbour_stride();
#pragma GCC ivdep
    for (int64_t x = 0; x < block.count; ++x) {
      T mean = T(0);
#pragma GCC unroll 9
      for (int k = 0; k < 9; ++k) mean += weights[c][k][x] * slopes[c][k][x];
      mean *= shares[c][x];
#pragma GCC unroll 9
      for (int k = 0; k < 9; ++k) {
        target[k * stride + x] = static_cast<M>(weights[c][k][x] * (slopes[c][k][x] - mean));
      }
    }
  }
}

// Each coarse pixel gathers what the pixels around it gave: in one order, whatever the threads.
template <class T, class M>
FLOWFUSE_INLINE void gather_row(const Upsample<T, M>& params, int64_t plane, int64_t y) {
  T* target = params.grad_field + (plane * params.height + y) * params.width;
  for (int64_t x = 0; x < params.width; ++x) target[x] = T(0);
  for (int64_t k = 0; k < 9; ++k) {
    const int64_t row = y - (k / 3 - 1), shift = 1 - k % 3;  // the pixel whose neighbour k this one is
    if (row < 0 || row >= params.height) continue;
    const T* part = params.parts + ((plane * 9 + k) * params.height + row) * params.stride;
    const int64_t begin = shift < 0 ? 1 : 0, end = shift > 0 ? params.width - 1 : params.width;
    for (int64_t x = begin; x < end; ++x) target[x] += part[x + shift];
  }
}

template <class T, class M>
FLOWFUSE_INLINE void upsample_rows(const Upsample<T, M>& params, int64_t first, int64_t last) {
  for_blocks(params.height, params.width, params.factor, first, last,
             [&](const PixelBlock& block, int64_t cell, int64_t count)
                 FLOWFUSE_INLINE_LAMBDA { upsample_block(params, block, cell, count); });
}

template <class T, class M>
FLOWFUSE_INLINE void rows_backward(const Upsample<T, M>& params, int64_t first, int64_t last) {
  for_blocks(params.height, params.width, params.factor, first, last,
             [&](const PixelBlock& block, int64_t cell, int64_t count)
                 FLOWFUSE_INLINE_LAMBDA { block_backward(params, block, cell, count); });
}

template <class T, class M>
Upsample<T, M> prepare(const Tensor& field, const Tensor& mask, const Tensor& padded, int64_t factor) {
  Upsample<T, M> params{};
  params.batch = field.size(0);
  params.channels = field.size(1);
  params.height = field.size(2);
  params.width = field.size(3);
  params.factor = factor;
  params.stride = whole_lanes(params.width);
  params.padded = data<T>(padded);
  params.mask = data<M>(mask);
  return params;
}

template <class T, class M>
void run_forward(const Tensor& field, const Tensor& mask, const Tensor& padded, int64_t factor, const Tensor& fine) {
  Upsample<T, M> params = prepare<T, M>(field, mask, padded, factor);
  params.fine = mutable_data<T>(fine);
  parallel_for(0, params.batch * params.height, 1,
               [&](int64_t first, int64_t last) { FLOWFUSE_VARIANTS(upsample_rows(params, first, last)) });
}

template <class T, class M>
void run_backward(const Tensor& grad, const Tensor& field, const Tensor& mask, const Tensor& padded, int64_t factor,
                  const Tensor& grad_field, const Tensor& grad_mask) {
  Upsample<T, M> params = prepare<T, M>(field, mask, padded, factor);
  const Tensor parts = allocate("convex_upsample_backward", field,
                                {params.batch, params.channels, 9, params.height, params.stride}, field.scalar_type());
  params.grad = data<T>(grad);
  params.parts = mutable_data<T>(parts);
  params.grad_field = mutable_data<T>(grad_field);
  params.grad_mask = mutable_data<M>(grad_mask);
  parallel_for(0, params.batch * params.height, 1,
               [&](int64_t first, int64_t last) { FLOWFUSE_VARIANTS(rows_backward(params, first, last)) });
  parallel_for(0, params.batch * params.channels * params.height, 16, [&](int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(for (int64_t row = first; row < last; ++row)
                          gather_row(params, row / params.height, row % params.height))
  });
}

// The field with a border of zeros, and on the right what whole vectors read past it.
Tensor zero_bordered(const Tensor& field) {
  const int64_t width = field.size(3);
  return torch::stable::pad(torch::stable::contiguous(field), {1, whole_lanes(width) - width + 1, 1, 1});
}

Tensor convex_upsample(Tensor field, Tensor mask, int64_t factor) {
  check_convex_upsample("convex_upsample", field, mask, factor);
  const int64_t batch = field.size(0), channels = field.size(1), height = field.size(2), width = field.size(3);
  const Tensor fine =
      allocate("convex_upsample", field, {batch, channels, height * factor, width * factor}, field.scalar_type());
  if (fine.numel() == 0) return fine;
  const Tensor padded = zero_bordered(field), logits = torch::stable::contiguous(mask);
  with_feature_type(mask.scalar_type(), [&](auto logit) {
    using M = decltype(logit);
    const auto run = field.scalar_type() == ScalarType::Double ? run_forward<double, M> : run_forward<float, M>;
    run(field, logits, padded, factor, fine);
  });
  return fine;
}

std::tuple<Tensor, Tensor> convex_upsample_backward(Tensor grad, Tensor field, Tensor mask, int64_t factor) {
  const char* op = "convex_upsample_backward";
  check_convex_upsample(op, field, mask, factor);
  const int64_t batch = field.size(0), channels = field.size(1), height = field.size(2), width = field.size(3);
  check_gradient(op, grad, {batch, channels, height * factor, width * factor}, field.scalar_type(), "field", field);
  const Tensor grad_field = allocate(op, field, shape_of(field), field.scalar_type());
  Tensor grad_mask = allocate(op, mask, shape_of(mask), mask.scalar_type());
  if (grad.numel() == 0) return {grad_field, torch::stable::zero_(grad_mask)};
  const Tensor padded = zero_bordered(field), logits = torch::stable::contiguous(mask);
  const Tensor g = torch::stable::contiguous(grad);
  with_feature_type(mask.scalar_type(), [&](auto logit) {
    using M = decltype(logit);
    const auto run = field.scalar_type() == ScalarType::Double ? run_backward<double, M> : run_backward<float, M>;
    run(g, field, logits, padded, factor, grad_field, grad_mask);
  });
  return {grad_field, grad_mask};
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("convex_upsample", TORCH_BOX(&flowfuse::cpu::convex_upsample));
  m.impl("convex_upsample_backward", TORCH_BOX(&flowfuse::cpu::convex_upsample_backward));
}
