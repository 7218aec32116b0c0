// The correlation volume and its gradients: products of matrices, a block makes a tile of one in shared memory.
#include <cmath>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cuda/launch.cuh"
#include "operators/correlation_volume.h"

namespace flowfuse::cuda {
namespace {

constexpr int kBlockSide = 64;                       // rows and columns of a product that a block makes
constexpr int kDepth = 16;                           // of the stretch of both factors held in shared memory
constexpr int kEach = 4;                             // rows and columns of the tile that a thread makes
constexpr int kThreadsPerSide = kBlockSide / kEach;  // threads along each side of the tile
constexpr int kPitch = kBlockSide + 4;               // keeps rows aligned to 16 bytes, and in different banks

static_assert(kThreadsPerSide * kThreadsPerSide == kThreads, "the threads of a block share its tile");

// A factor of a product: element (i, k) of its matrix number n is values[n * batch + i * along + k * deep], where
// k counts what is summed over. A batch that is one matrix has the stride 0.
template <class F>
struct Operand {
  const F* values;
  int64_t batch, along, deep;
};

// out[n][i][j] = scale * sum_k a(i, k) b(j, k), added to what is there where `add` says so.
template <class A, class B>
struct Product {
  Operand<A> a;
  Operand<B> b;
  SumType<A>* out;
  int64_t batch, rows, columns, depth;
  SumType<A> scale;
  bool add;
};

template <class T>
using StageRows = T[kDepth][kPitch];

template <class T>
struct Stage {
  alignas(16) StageRows<T> a;
  alignas(16) StageRows<T> b;
};

// Copies tile[k][i] from elements (first + i, deep + k); beyond `count` and `depth` it is 0. Neighbouring threads
// read neighbouring elements.
template <class T, class F>
__device__ __forceinline__ void load_stage(StageRows<T>& tile, const Operand<F>& operand, int64_t matrix, int64_t first,
                                           int64_t count, int64_t deep, int64_t depth) {
  const F* values = operand.values + matrix * operand.batch;
  for (int part = 0; part < kBlockSide * kDepth / kThreads; ++part) {
    const int index = part * kThreads + static_cast<int>(threadIdx.x);
    const int i = operand.along == 1 ? index % kBlockSide : index / kDepth;
    const int k = operand.along == 1 ? index / kBlockSide : index % kDepth;
    const bool there = first + i < count && deep + k < depth;
    tile[k][i] = there ? static_cast<T>(values[(first + i) * operand.along + (deep + k) * operand.deep]) : T(0);
  }
}

template <class A, class B>
__global__ void __launch_bounds__(kThreads) multiply(Product<A, B> params) {
  using T = SumType<A>;
  Stage<T>& stage = *shared_memory<Stage<T>>();
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / kThreadsPerSide * kEach, column = thread % kThreadsPerSide * kEach;
  const int64_t across = (params.columns + kBlockSide - 1) / kBlockSide,
                down = (params.rows + kBlockSide - 1) / kBlockSide;
  const int64_t blocks = params.batch * down * across;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t matrix = block / across / down;
    const int64_t first_row = block / across % down * kBlockSide, first_column = block % across * kBlockSide;
    T sums[kEach][kEach] = {};
    for (int64_t deep = 0; deep < params.depth; deep += kDepth) {
      load_stage(stage.a, params.a, matrix, first_row, params.rows, deep, params.depth);
      load_stage(stage.b, params.b, matrix, first_column, params.columns, deep, params.depth);
      __syncthreads();
      for (int k = 0; k < kDepth; ++k) {
        T a[kEach], b[kEach];
        for (int i = 0; i < kEach; ++i) a[i] = stage.a[k][row + i];
        for (int j = 0; j < kEach; ++j) b[j] = stage.b[k][column + j];
        for (int i = 0; i < kEach; ++i) {
          for (int j = 0; j < kEach; ++j) sums[i][j] += a[i] * b[j];
        }
      }
      __syncthreads();  // the tiles have been read
    }
    for (int i = 0; i < kEach; ++i) {
      if (first_row + row + i >= params.rows) break;
      T* target = params.out + (matrix * params.rows + first_row + row + i) * params.columns + first_column + column;
      for (int j = 0; j < kEach; ++j) {
        if (first_column + column + j >= params.columns) break;
        const T value = params.scale * sums[i][j];
        target[j] = params.add ? target[j] + value : value;
      }
    }
  }
}

template <class A, class B>
void run(const DeviceCall& call, const Product<A, B>& params) {
  const int64_t tiles =
      ((params.rows + kBlockSide - 1) / kBlockSide) * ((params.columns + kBlockSide - 1) / kBlockSide);
  call.launch(multiply<A, B>, blocks_for(params.batch * tiles, 1), kThreads, sizeof(Stage<SumType<A>>), params);
}

// A feature map [B, C, h, w] as it lies in memory: channels last or plane by plane. Others are copied.
struct FactorMap {
  Features features;
  int64_t channels;
  bool channels_last;
};

FactorMap factor_map(const Tensor& tensor) {
  const bool channels_last = tensor.stride(1) == 1;
  const MemoryFormat format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return {packed(tensor, tensor.scalar_type(), format), tensor.size(1), channels_last};
}

// Its matrix of pixels by channels, summed over the channels...
template <class F>
Operand<F> over_channels(const FactorMap& map) {
  const int64_t pixels = map.features.rows * map.features.columns;
  return {data<F>(map.features.tensor), map.features.batch_stride, map.channels_last ? map.channels : 1,
          map.channels_last ? 1 : pixels};
}

// ...and over the pixels.
template <class F>
Operand<F> over_pixels(const FactorMap& map) {
  const Operand<F> other = over_channels<F>(map);
  return {other.values, other.batch, other.deep, other.along};
}

// Calls visit(A{}, B{}) with the C++ types of the dtypes of f0 and of a level, both float64 or neither. In two
// functions: of one lambda in another GCC 12 took the wrong types.
template <class A, class Visit>
void with_level_type(ScalarType f1, const Visit& visit) {
  with_feature_type(f1, [&](auto b) {
    if constexpr (std::is_same_v<SumType<A>, SumType<decltype(b)>>) visit(A{}, b);
  });
}

template <class Visit>
void with_feature_types(ScalarType f0, ScalarType f1, const Visit& visit) {
  with_feature_type(f0, [&](auto a) { with_level_type<decltype(a)>(f1, visit); });
}

template <class T>
T scale_of(const FactorMap& map) {
  return T(1) / std::sqrt(static_cast<T>(map.channels));
}

std::vector<Tensor> correlation_volume(Tensor f0, std::vector<Tensor> f1_levels) {
  const char* op = "correlation_volume";
  check_correlation_volume(op, f0, f1_levels);
  const DeviceCall call(op, f0);
  const FactorMap source = factor_map(f0);
  const int64_t batch = f0.size(0), pixels = f0.size(2) * f0.size(3);
  std::vector<Tensor> volumes;
  for (const Tensor& level : f1_levels) {
    const FactorMap target = factor_map(level);
    const int64_t cells = level.size(2) * level.size(3);
    volumes.push_back(allocate(op, f0, {batch, f0.size(2), f0.size(3), level.size(2), level.size(3)},
                               sum_dtype(f0.scalar_type()), MemoryFormat::Contiguous, kOnDemandAdvice));
    with_feature_types(f0.scalar_type(), level.scalar_type(), [&](auto a, auto b) {
      using A = decltype(a);
      using B = decltype(b);
      run(call,
          Product<A, B>{over_channels<A>(source), over_channels<B>(target), mutable_data<SumType<A>>(volumes.back()),
                        batch, pixels, cells, source.channels, scale_of<SumType<A>>(source), false});
    });
  }
  return volumes;
}

std::tuple<Tensor, std::vector<Tensor>> correlation_volume_backward(std::vector<Tensor> grads, Tensor f0,
                                                                    std::vector<Tensor> f1_levels) {
  const char* op = "correlation_volume_backward";
  check_correlation_volume(op, f0, f1_levels);
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  if (grads.size() != f1_levels.size()) refuse(op, "one gradient for each level is needed");
  const DeviceCall call(op, f0);
  const FactorMap source = factor_map(f0);
  const int64_t batch = f0.size(0), pixels = f0.size(2) * f0.size(3), channels = f0.size(1);
  const Tensor grad_f0 = empty_channels_last(op, f0, dtype);
  bool written = false;  // to grad_f0, by an earlier level
  std::vector<Tensor> grad_levels;
  for (size_t level = 0; level < f1_levels.size(); ++level) {
    const Tensor& f1 = f1_levels[level];
    check_gradient(op, grads[level], {batch, f0.size(2), f0.size(3), f1.size(2), f1.size(3)}, dtype, "f0", f0);
    const Tensor grad = torch::stable::contiguous(grads[level]);
    const Tensor grad_f1 = empty_channels_last(op, f1, dtype);
    const FactorMap target = factor_map(f1);
    const int64_t cells = f1.size(2) * f1.size(3);
    with_feature_type(f0.scalar_type(), [&](auto feature) {
      using F = decltype(feature);
      using T = SumType<F>;
      run(call, Product<T, F>{{data<T>(grad), pixels * cells, 1, cells},
                              over_pixels<F>(source),
                              mutable_data<T>(grad_f1),
                              batch,
                              cells,
                              channels,
                              pixels,
                              scale_of<T>(source),
                              false});
    });
    grad_levels.push_back(torch::stable::to(grad_f1, f1.scalar_type()));
    if (cells == 0) continue;
    with_feature_type(f1.scalar_type(), [&](auto feature) {
      using F = decltype(feature);
      using T = SumType<F>;
      run(call, Product<T, F>{{data<T>(grad), pixels * cells, cells, 1},
                              over_pixels<F>(target),
                              mutable_data<T>(grad_f0),
                              batch,
                              pixels,
                              channels,
                              cells,
                              scale_of<T>(source),
                              written});
    });
    written = true;
  }
  if (!written) call.clear(grad_f0);
  return {torch::stable::to(grad_f0, f0.scalar_type()), grad_levels};
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("correlation_volume", TORCH_BOX(&flowfuse::cuda::correlation_volume));
  m.impl("correlation_volume_backward", TORCH_BOX(&flowfuse::cuda::correlation_volume_backward));
}
