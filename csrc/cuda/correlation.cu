// Look-ups in a correlation volume and on demand. A block has some neighbouring pixels of an item in hand and takes
// their windows through shared memory: taps are read along the map, results written along the pixels.
#include <cmath>
#include <tuple>
#include <vector>

#include "cuda/correlation.cuh"
#include "cuda/launch.cuh"

namespace flowfuse {
namespace {

constexpr int kMostPixels = 32;                    // of a block
constexpr int kGroup = 8;                          // lanes that share the channels of a product
constexpr int kTile = kThreads / kWarp;            // rows and columns of f1's gradient that a block sums
constexpr int kLaneChannels = 2;                   // channels of it that a lane sums
constexpr int kChunk = kWarp * kLaneChannels;      // and that a block sums
constexpr int64_t kWorkspace = int64_t{64} << 20;  // bytes of tap gradients held at a time

// What the levels of a look-up have in common; kernels take the items [item, item + items).
struct Lookup {
  const void* coords;  // [B, 2, pixels], double where `wide`, else float
  bool wide;
  int64_t item, items, pixels;
  int radius, level, levels;

  __device__ __forceinline__ int side() const { return 2 * radius + 2; }  // taps along an axis
  __device__ __forceinline__ int taps() const { return side() * side(); }
  __device__ __forceinline__ int window_size() const { return (2 * radius + 1) * (2 * radius + 1); }

  template <class T>
  __device__ __forceinline__ Window<T> window(int64_t b, int64_t pixel, int64_t rows, int64_t columns) const {
    const int64_t at = b * 2 * pixels + pixel;
    const double x = wide ? static_cast<const double*>(coords)[at] : static_cast<const float*>(coords)[at];
    const double y =
        wide ? static_cast<const double*>(coords)[at + pixels] : static_cast<const float*>(coords)[at + pixels];
    return window_at<T>(x, y, level, radius, rows, columns);
  }

  // First of the values of a window in [B, levels * window_size, pixels]; the others follow `pixels` apart.
  __device__ __forceinline__ int64_t values_at(int64_t b, int64_t pixel) const {
    return (b * levels + level) * window_size() * pixels + pixel;
  }
};

// A level of a volume: values and their gradient [B, pixels, rows, columns].
template <class T>
struct VolumeLevel {
  using Value = T;
  const T* values;
  T* grad;
  int64_t rows, columns;
};

// A level of f1 [B, rows, columns, C] in its own dtype, and f0 [B, pixels, C]. The gradient in f0 is added to what
// earlier levels left; those of the taps are kept [items, pixels, taps] for the gradient in f1.
template <class F>
struct FeatureLevel {
  using Value = Sum<F>;
  const Value* f0;
  const F* f1;
  Value* grad_f0;
  Value* kept;
  int64_t f0_stride, f1_stride, channels, rows, columns;
  Value scale;
};

// The pixels that a block has in hand, blockDim.x at most, and its shared memory.
template <class T>
struct Patch {
  int64_t b, begin;    // item and first pixel
  int count;           // of pixels
  Window<T>* windows;  // [blockDim.x]
  T* parts;            // [kThreads][2]
  T* taps;             // [blockDim.x][stride]
  int stride;
};

// Taps of a pixel lie an odd number apart: those of all pixels are then read from different banks.
FLOWFUSE_INLINE int stride_of(int taps) { return taps + 1; }

template <class T>
size_t patch_bytes(int pixels, int taps) {
  return pixels * (sizeof(Window<T>) + stride_of(taps) * sizeof(T)) + 2 * kThreads * sizeof(T);
}

__device__ __forceinline__ int64_t patches_of(const Lookup& job) {  // of an item
  return (job.pixels + blockDim.x - 1) / blockDim.x;
}

__device__ __forceinline__ int thread_number() { return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); }

// Takes patch number `index` of the items in hand and finds its windows.
template <class Level, class T = typename Level::Value>
__device__ __forceinline__ Patch<T> take_patch(const Lookup& job, const Level& level, int64_t index) {
  Patch<T> patch;
  const int64_t patches = patches_of(job);
  patch.b = job.item + index / patches;
  patch.begin = index % patches * blockDim.x;
  const int64_t left = job.pixels - patch.begin;
  patch.count = left < blockDim.x ? static_cast<int>(left) : static_cast<int>(blockDim.x);
  patch.windows = shared_memory<Window<T>>();
  patch.parts = reinterpret_cast<T*>(patch.windows + blockDim.x);
  patch.taps = patch.parts + 2 * kThreads;
  patch.stride = stride_of(job.taps());
  const int i = thread_number();
  if (i < patch.count) {
    patch.windows[i] = job.window<T>(patch.b, patch.begin + i, level.rows, level.columns);
  }
  return patch;
}

// Calls visit(pixel of the patch, dx, dy) for the taps of all its pixels, shared among the threads of the block;
// neighbouring threads have neighbouring dx.
template <class T, class Visit>
__device__ __forceinline__ void visit_patch(const Lookup& job, const Patch<T>& patch, const Visit& visit) {
  const int side = job.side();
  for (int index = thread_number(); index < patch.count * side * side; index += kThreads) {
    const int row = index / side;
    visit(row / side, index % side, row % side);
  }
}

__device__ __forceinline__ bool contains(const TapRange& range, int dx, int dy) {
  return dx >= range.x0 && dx < range.x1 && dy >= range.y0 && dy < range.y1;
}

// Cell (as the map lies in memory) of a tap inside the map.
template <class T>
__device__ __forceinline__ int64_t cell_of(const Window<T>& window, int64_t columns, int dx, int dy) {
  return (window.y + dy) * columns + window.x + dx;
}

template <class T>
__device__ __forceinline__ int64_t slice_of(const Lookup& job, const VolumeLevel<T>& level, const Patch<T>& patch,
                                            int i) {
  return (patch.b * job.pixels + patch.begin + i) * level.rows * level.columns;
}

// Values of the taps of a patch; outside the map they are 0.
template <class T>
__device__ __forceinline__ void read_taps(const Lookup& job, const VolumeLevel<T>& level, const Patch<T>& patch) {
  visit_patch(job, patch, [&](int i, int dx, int dy) {
    const Window<T>& window = patch.windows[i];
    const TapRange range = taps_inside(window, job.radius, level.rows, level.columns);
    T value = 0;
    if (contains(range, dx, dy)) {
      value = level.values[slice_of(job, level, patch, i) + cell_of(window, level.columns, dx, dy)];
    }
    patch.taps[i * patch.stride + dx * job.side() + dy] = value;
  });
}

// A warp makes the products of a pixel, kWarp / kGroup of them at a time.
template <class F, class T>
__device__ __forceinline__ void read_taps(const Lookup& job, const FeatureLevel<F>& level, const Patch<T>& patch) {
  constexpr int kAtOnce = kWarp / kGroup;
  const int lane = thread_number() % kWarp, part = lane % kGroup;
  for (int i = thread_number() / kWarp; i < patch.count; i += kThreads / kWarp) {
    T* taps = patch.taps + i * patch.stride;
    for (int k = lane; k < job.taps(); k += kWarp) taps[k] = 0;
    __syncwarp();
    const Window<T>& window = patch.windows[i];
    const TapRange range = taps_inside(window, job.radius, level.rows, level.columns);
    const int width = range.x1 - range.x0, count = width * (range.y1 - range.y0);
    const T* f0 = level.f0 + patch.b * level.f0_stride + (patch.begin + i) * level.channels;
    const F* f1 = level.f1 + patch.b * level.f1_stride;
    for (int first = 0; first < count; first += kAtOnce) {  // the lanes stay together for the shuffles
      const int k = first + lane / kGroup;
      const int dx = range.x0 + k % width, dy = range.y0 + k / width;
      T sum = 0;
      if (k < count) {
        const F* feature = f1 + cell_of(window, level.columns, dx, dy) * level.channels;
        for (int64_t c = part; c < level.channels; c += kGroup) sum += f0[c] * static_cast<T>(feature[c]);
      }
      for (int step = kGroup / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, step);
      if (part == 0 && k < count) taps[dx * job.side() + dy] = level.scale * sum;
    }
  }
}

template <class Level, class T = typename Level::Value>
__global__ void __launch_bounds__(kThreads, 3) look_up(Lookup job, Level level, T* __restrict__ output) {
  const int64_t patches = job.items * patches_of(job);
  const int size = 2 * job.radius + 1, i = static_cast<int>(threadIdx.x);
  for (int64_t index = blockIdx.x; index < patches; index += gridDim.x) {
    const Patch<T> patch = take_patch(job, level, index);
    __syncthreads();
    read_taps(job, level, patch);
    __syncthreads();
    if (i < patch.count) {
      const Window<T> window = patch.windows[i];
      const Corners<T> corners = corners_of(window);
      T* out = output + job.values_at(patch.b, patch.begin + i);
      for (int k = static_cast<int>(threadIdx.y); k < size * size; k += static_cast<int>(blockDim.y)) {
        const T* near = patch.taps + i * patch.stride + k / size * job.side();
        T value = 0;
        if (window.reach == Reach::kNear) value = combined_value(corners, near, near + job.side(), k % size);
        if (window.reach == Reach::kMissing) value = static_cast<T>(NAN);
        out[k * job.pixels] = value;
      }
    }
    __syncthreads();  // the patch has been read
  }
}

// Gradient in the coordinates, added to what earlier levels left: each thread sums some values of the window of a
// pixel, then one of them the parts in their order. The taps have been read into the patch.
template <class T>
__device__ __forceinline__ void add_coords_gradient(const Lookup& job, const Patch<T>& patch, const T* grad,
                                                    T* grad_coords) {
  const int size = 2 * job.radius + 1, i = static_cast<int>(threadIdx.x);
  const bool there = i < patch.count;
  T gx = 0, gy = 0;
  if (there && patch.windows[i].reach == Reach::kNear) {
    const Window<T> window = patch.windows[i];
    const T* values = grad + job.values_at(patch.b, patch.begin + i);
    for (int k = static_cast<int>(threadIdx.y); k < size * size; k += static_cast<int>(blockDim.y)) {
      const T* near = patch.taps + i * patch.stride + k / size * job.side();
      add_centre_gradient(values[k * job.pixels], window, near, near + job.side(), k % size, gx, gy);
    }
  }
  patch.parts[2 * thread_number()] = gx;
  patch.parts[2 * thread_number() + 1] = gy;
  __syncthreads();
  if (there && threadIdx.y < 2) {
    T sum = 0;
    for (unsigned part = 0; part < blockDim.y; ++part) {
      sum += patch.parts[2 * (part * blockDim.x + threadIdx.x) + threadIdx.y];
    }
    sum /= static_cast<T>(int64_t{1} << job.level);
    T& target = grad_coords[(patch.b * 2 + threadIdx.y) * job.pixels + patch.begin + i];
    target = job.level == 0 ? sum : target + sum;
  }
}

// Gradients of the taps of a patch -> gradient of the volume, which was cleared.
template <class T>
__device__ __forceinline__ void pass_on(const Lookup& job, const VolumeLevel<T>& level, const Patch<T>& patch) {
  visit_patch(job, patch, [&](int i, int dx, int dy) {
    const Window<T>& window = patch.windows[i];
    const TapRange range = taps_inside(window, job.radius, level.rows, level.columns);
    if (!contains(range, dx, dy)) return;
    level.grad[slice_of(job, level, patch, i) + cell_of(window, level.columns, dx, dy)] =
        patch.taps[i * patch.stride + dx * job.side() + dy];
  });
}

// Gradients of the taps of a patch -> gradient in f0, and kept for that in f1.
template <class F, class T>
__device__ __forceinline__ void pass_on(const Lookup& job, const FeatureLevel<F>& level, const Patch<T>& patch) {
  const int taps = job.taps(), lane = thread_number() % kWarp;
  T* kept = level.kept + ((patch.b - job.item) * job.pixels + patch.begin) * taps;
  for (int index = thread_number(); index < patch.count * taps; index += kThreads) {
    kept[index] = patch.taps[index / taps * patch.stride + index % taps];
  }
  for (int i = thread_number() / kWarp; i < patch.count; i += kThreads / kWarp) {
    const Window<T>& window = patch.windows[i];
    const TapRange range = taps_inside(window, job.radius, level.rows, level.columns);
    const F* f1 = level.f1 + patch.b * level.f1_stride;
    T* grad_f0 = level.grad_f0 + (patch.b * job.pixels + patch.begin + i) * level.channels;
    for (int64_t c = lane; c < level.channels; c += kWarp) {
      T sum = 0;
      for (int dy = range.y0; dy < range.y1; ++dy) {
        for (int dx = range.x0; dx < range.x1; ++dx) {
          sum += patch.taps[i * patch.stride + dx * job.side() + dy] *
                 static_cast<T>(f1[cell_of(window, level.columns, dx, dy) * level.channels + c]);
        }
      }
      sum *= level.scale;
      grad_f0[c] = job.level == 0 ? sum : grad_f0[c] + sum;
    }
  }
}

// Gradients that belong to a pixel: its slice of the volume or its f0, and its coordinates (null: not asked for).
template <class Level, class T = typename Level::Value>
__global__ void __launch_bounds__(kThreads, 3)
    pixel_gradients(Lookup job, Level level, const T* __restrict__ grad, T* __restrict__ grad_coords) {
  const int64_t patches = job.items * patches_of(job);
  const int side = job.side(), i = static_cast<int>(threadIdx.x);
  for (int64_t index = blockIdx.x; index < patches; index += gridDim.x) {
    const Patch<T> patch = take_patch(job, level, index);
    __syncthreads();
    if (grad_coords != nullptr) {
      read_taps(job, level, patch);
      __syncthreads();
      add_coords_gradient(job, patch, grad, grad_coords);  // its barrier: the taps have been read
    }
    if (i < patch.count) {
      const bool near = patch.windows[i].reach == Reach::kNear;
      const Corners<T> corners = corners_of(patch.windows[i]);
      const T* values = grad + job.values_at(patch.b, patch.begin + i);
      for (int k = static_cast<int>(threadIdx.y); k < side * side; k += static_cast<int>(blockDim.y)) {
        patch.taps[i * patch.stride + k] =
            near ? tap_gradient(values, job.pixels, corners, job.radius, k / side, k % side) : T(0);
      }
    }
    __syncthreads();
    pass_on(job, level, patch);
    __syncthreads();  // the patch has been read
  }
}

// A pixel whose window reaches the tile of a block: its number after the first of its batch, and the tap that lies
// on the first cell of the tile.
struct Touch {
  int pixel, dx, dy;
};

struct Touches {
  int counts[kThreads / kWarp];  // of each warp
  Touch list[kThreads];          // in the order of the pixels
};

// Lists which of the kThreads pixels from `base` on have a window that reaches the tile at (x, y); returns how many.
template <class T>
__device__ __forceinline__ int list_touches(const Lookup& job, int64_t b, int64_t base, int64_t rows,
                                            int64_t columns, int64_t x, int64_t y, Touches& touches) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  Touch touch{thread, 0, 0};
  bool touching = false;
  if (base + thread < job.pixels) {
    const Window<T> window = job.window<T>(b, base + thread, rows, columns);
    const int64_t dx = x - window.x, dy = y - window.y;
    touching = window.reach == Reach::kNear && dx > -kTile && dx < job.side() && dy > -kTile && dy < job.side();
    touch.dx = static_cast<int>(dx);
    touch.dy = static_cast<int>(dy);
  }
  const unsigned votes = __ballot_sync(kWholeWarp, touching);
  if (lane == 0) touches.counts[warp] = __popc(votes);
  __syncthreads();
  int place = __popc(votes & ((1u << lane) - 1)), count = 0;
  for (int other = 0; other < kThreads / kWarp; ++other) {
    if (other < warp) place += touches.counts[other];
    count += touches.counts[other];
  }
  if (touching) touches.list[place] = touch;
  __syncthreads();
  return count;
}

// Gradient in a level of f1 [B, rows, columns, C]: a block sums a tile of cells and a chunk of channels over all
// pixels in their order, a warp a row of the tile, a lane its channels.
template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    gather_f1(Lookup job, const T* __restrict__ kept, const T* __restrict__ f0, int64_t f0_stride, int64_t channels,
              int64_t rows, int64_t columns, T scale, T* __restrict__ grad_f1) {
  Touches& touches = *shared_memory<Touches>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int side = job.side(), taps = job.taps();
  const int64_t across = (columns + kTile - 1) / kTile, down = (rows + kTile - 1) / kTile;
  const int64_t chunks = (channels + kChunk - 1) / kChunk;
  for (int64_t block = blockIdx.x; block < job.items * down * across * chunks; block += gridDim.x) {
    const int64_t first = block % chunks * kChunk + lane, tile = block / chunks;
    const int64_t x = tile % across * kTile, y = tile / across % down * kTile, item = tile / across / down;
    const int64_t b = job.item + item;
    T sums[kTile][kLaneChannels] = {};
    for (int64_t base = 0; base < job.pixels; base += kThreads) {
      const int count = list_touches<T>(job, b, base, rows, columns, x, y, touches);
      for (int entry = 0; entry < count; ++entry) {
        const Touch touch = touches.list[entry];
        const int dy = touch.dy + warp;
        if (dy < 0 || dy >= side) continue;
        const int64_t pixel = base + touch.pixel;
        const T* factors = kept + (item * job.pixels + pixel) * taps + dy;
        const T* feature = f0 + b * f0_stride + pixel * channels + first;
        T values[kLaneChannels];
        for (int c = 0; c < kLaneChannels; ++c) values[c] = first + c * kWarp < channels ? feature[c * kWarp] : T(0);
        for (int j = 0; j < kTile; ++j) {
          const int dx = touch.dx + j;
          if (dx < 0 || dx >= side) continue;
          const T factor = factors[dx * side];
          for (int c = 0; c < kLaneChannels; ++c) sums[j][c] += factor * values[c];
        }
      }
      __syncthreads();  // the list has been read
    }
    for (int j = 0; j < kTile; ++j) {
      for (int c = 0; c < kLaneChannels; ++c) {
        if (y + warp >= rows || x + j >= columns || first + c * kWarp >= channels) continue;
        grad_f1[((b * rows + y + warp) * columns + x + j) * channels + first + c * kWarp] = scale * sums[j][c];
      }
    }
  }
}

// How a kernel that takes patches is launched: as many pixels a block as fit in shared memory.
struct PatchLaunch {
  unsigned grid;
  dim3 block;
  size_t shared_bytes;
};

template <class T>
PatchLaunch patch_launch(const Lookup& job) {
  const int side = 2 * job.radius + 2;
  int pixels = kMostPixels;  // a power of two, so that a block has kThreads threads
  while (pixels > 1 && patch_bytes<T>(pixels, side * side) > kSharedLimit) pixels /= 2;
  const int64_t patches = job.items * ((job.pixels + pixels - 1) / pixels);
  return {blocks_for(patches, 1), dim3(pixels, kThreads / pixels), patch_bytes<T>(pixels, side * side)};
}

template <class Level, class T = typename Level::Value>
void run_lookup(const DeviceCall& call, const Lookup& job, const Level& level, const Tensor& output) {
  const PatchLaunch launch = patch_launch<T>(job);
  call.launch(look_up<Level>, launch.grid, launch.block, launch.shared_bytes, job, level, mutable_data<T>(output));
}

template <class Level, class T = typename Level::Value>
void run_pixel_gradients(const DeviceCall& call, const Lookup& job, const Level& level, const Tensor& grad,
                         const Tensor& grad_coords) {
  const PatchLaunch launch = patch_launch<T>(job);
  T* target = grad_coords.numel() > 0 ? mutable_data<T>(grad_coords) : nullptr;
  call.launch(pixel_gradients<Level>, launch.grid, launch.block, launch.shared_bytes, job, level, data<T>(grad),
              target);
}

template <class T>
void run_gather(const DeviceCall& call, const Lookup& job, const Tensor& kept, const Features& f0, int64_t channels,
                int64_t rows, int64_t columns, const Tensor& grad_f1) {
  const int64_t tiles = ((rows + kTile - 1) / kTile) * ((columns + kTile - 1) / kTile);
  const int64_t blocks = job.items * tiles * ((channels + kChunk - 1) / kChunk);
  call.launch(gather_f1<T>, blocks_for(blocks, 1), kThreads, sizeof(Touches), job, data<T>(kept), data<T>(f0.tensor),
              f0.batch_stride, channels, rows, columns, T(1) / std::sqrt(static_cast<T>(channels)),
              mutable_data<T>(grad_f1));
}

// coords contiguous.
Lookup lookup_of(const Tensor& coords, size_t levels, int64_t radius) {
  Lookup job{};
  job.coords = coords.const_data_ptr();
  job.wide = coords.scalar_type() == ScalarType::Double;
  job.items = coords.size(0);
  job.pixels = coords.size(2) * coords.size(3);
  job.radius = static_cast<int>(radius);
  job.levels = static_cast<int>(levels);
  return job;
}

// Coordinates' gradient, summed in `dtype`: as coords when asked for, else empty.
Tensor empty_coords_gradient(const char* op, const Tensor& coords, bool needed, ScalarType dtype) {
  return allocate(op, coords, needed ? shape_of(coords) : std::vector<int64_t>{0}, dtype);
}

Tensor volume_lookup(std::vector<Tensor> volumes, Tensor coords, int64_t radius) {
  const char* op = "volume_lookup";
  check_volume_lookup(volumes, coords, radius);
  const DeviceCall call(op, coords);
  const ScalarType dtype = volumes[0].scalar_type();
  const Tensor output = allocate(op, coords, windows_shape(coords, volumes.size(), radius), dtype);
  const Tensor points = torch::stable::contiguous(coords);
  Lookup job = lookup_of(points, volumes.size(), radius);
  for (const Tensor& map : volumes) {
    const Tensor volume = torch::stable::contiguous(map);
    const int64_t rows = map.size(3), columns = map.size(4);
    if (dtype == ScalarType::Double) {
      run_lookup(call, job, VolumeLevel<double>{data<double>(volume), nullptr, rows, columns}, output);
    } else {
      run_lookup(call, job, VolumeLevel<float>{data<float>(volume), nullptr, rows, columns}, output);
    }
    ++job.level;
  }
  return output;
}

std::tuple<std::vector<Tensor>, Tensor> volume_lookup_backward(Tensor grad, std::vector<Tensor> volumes,
                                                               Tensor coords, int64_t radius, bool coords_needed) {
  const char* op = "volume_lookup_backward";
  check_volume_lookup(volumes, coords, radius);
  const ScalarType dtype = volumes[0].scalar_type();
  check_gradient(op, grad, windows_shape(coords, volumes.size(), radius), dtype, "coords", coords);
  const DeviceCall call(op, coords);
  const Tensor points = torch::stable::contiguous(coords), g = torch::stable::contiguous(grad);
  const Tensor grad_coords = empty_coords_gradient(op, coords, coords_needed, dtype);
  Lookup job = lookup_of(points, volumes.size(), radius);
  std::vector<Tensor> grads;
  for (const Tensor& map : volumes) {
    const Tensor volume = torch::stable::contiguous(map);
    const int64_t rows = map.size(3), columns = map.size(4);
    grads.push_back(allocate(op, map, shape_of(map), dtype, MemoryFormat::Contiguous, kOnDemandAdvice));
    call.clear(grads.back());
    const auto run = [&](auto zero) {
      using T = decltype(zero);
      const VolumeLevel<T> level{data<T>(volume), mutable_data<T>(grads.back()), rows, columns};
      run_pixel_gradients(call, job, level, g, grad_coords);
    };
    dtype == ScalarType::Double ? run(double{}) : run(float{});
    ++job.level;
  }
  return {grads, torch::stable::to(grad_coords, coords.scalar_type())};
}

// f1 as the kernels of its own dtype read it.
template <class F>
FeatureLevel<F> level_of(const Features& f0, const Features& f1, int64_t channels) {
  using T = Sum<F>;
  return {data<T>(f0.tensor), data<F>(f1.tensor), nullptr, nullptr, f0.batch_stride, f1.batch_stride, channels,
          f1.rows, f1.columns, T(1) / std::sqrt(static_cast<T>(channels))};
}

Tensor correlation_lookup(Tensor f0, std::vector<Tensor> f1_levels, Tensor coords, int64_t radius) {
  const char* op = "correlation_lookup";
  check_correlation_lookup(f0, f1_levels, coords, radius);
  const DeviceCall call(op, f0);
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  const Tensor output = allocate(op, f0, windows_shape(coords, f1_levels.size(), radius), dtype);
  const Tensor points = torch::stable::contiguous(coords);
  const Features source = packed(f0, dtype, MemoryFormat::ChannelsLast);
  Lookup job = lookup_of(points, f1_levels.size(), radius);
  for (const Tensor& map : f1_levels) {
    const Features f1 = packed(map, map.scalar_type(), MemoryFormat::ChannelsLast);
    with_feature_type(map.scalar_type(), [&](auto feature) {
      run_lookup(call, job, level_of<decltype(feature)>(source, f1, f0.size(1)), output);
    });
    ++job.level;
  }
  return output;
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> correlation_lookup_backward(
    Tensor grad, Tensor f0, std::vector<Tensor> f1_levels, Tensor coords, int64_t radius, bool coords_needed) {
  const char* op = "correlation_lookup_backward";
  check_correlation_lookup(f0, f1_levels, coords, radius);
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  check_gradient(op, grad, windows_shape(coords, f1_levels.size(), radius), dtype, "f0", f0);
  const DeviceCall call(op, f0);
  const Tensor points = torch::stable::contiguous(coords), g = torch::stable::contiguous(grad);
  const Features source = packed(f0, dtype, MemoryFormat::ChannelsLast);
  const Tensor grad_f0 = empty_channels_last(op, f0, dtype);
  const Tensor grad_coords = empty_coords_gradient(op, coords, coords_needed, dtype);
  Lookup job = lookup_of(points, f1_levels.size(), radius);
  // Items are taken a group at a time: the workspace does not grow with the batch.
  const int64_t batch = job.items, item_taps = job.pixels * (2 * radius + 2) * (2 * radius + 2);
  const int64_t item_bytes = std::max<int64_t>(1, item_taps * static_cast<int64_t>(grad_f0.element_size()));
  const int64_t group = std::min(batch, std::max<int64_t>(1, kWorkspace / item_bytes));
  const Tensor kept = allocate(op, f0, {group, item_taps}, dtype);
  std::vector<Tensor> grads;
  for (const Tensor& map : f1_levels) {
    const Features f1 = packed(map, map.scalar_type(), MemoryFormat::ChannelsLast);
    const Tensor grad_f1 = empty_channels_last(op, map, dtype);
    with_feature_type(map.scalar_type(), [&](auto feature) {
      using F = decltype(feature);
      using T = Sum<F>;
      FeatureLevel<F> level = level_of<F>(source, f1, f0.size(1));
      level.grad_f0 = mutable_data<T>(grad_f0);
      level.kept = mutable_data<T>(kept);
      for (job.item = 0; job.item < batch; job.item += group) {
        job.items = std::min(group, batch - job.item);
        run_pixel_gradients(call, job, level, g, grad_coords);
        run_gather<T>(call, job, kept, source, f0.size(1), f1.rows, f1.columns, grad_f1);
      }
    });
    grads.push_back(torch::stable::to(grad_f1, map.scalar_type()));
    ++job.level;
  }
  return {torch::stable::to(grad_f0, f0.scalar_type()), grads, torch::stable::to(grad_coords, coords.scalar_type())};
}

}  // namespace
}  // namespace flowfuse

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("volume_lookup", TORCH_BOX(&flowfuse::volume_lookup));
  m.impl("volume_lookup_backward", TORCH_BOX(&flowfuse::volume_lookup_backward));
  m.impl("correlation_lookup", TORCH_BOX(&flowfuse::correlation_lookup));
  m.impl("correlation_lookup_backward", TORCH_BOX(&flowfuse::correlation_lookup_backward));
}
