// Voxel grids: one thread an event. Integer sums have the same bits in any order, those of the CPU kernel.
#include <tuple>

#include "cuda/launch.cuh"
#include "operators/voxelize.h"

namespace flowfuse::cuda {
namespace {

#ifndef FLOWFUSE_GROUP_BYTES
#define FLOWFUSE_GROUP_BYTES (int64_t{32} << 20)
#endif
constexpr int64_t kGroupBytes = FLOWFUSE_GROUP_BYTES;  // of sums made at a time, where one item does not need more

// One call. The host never reads offsets, t0 and t1: what they must obey is not checked, only made harmless.
struct Voxels {
  Events events;
  const int64_t *offsets, *t0, *t1;
  int64_t count, bins, height, width;
  bool rectified;

  __device__ __forceinline__ Grid grid(int64_t item) const {
    const int bits = rectified ? space_bits(events_of(offsets, item, count)) : 0;
    return {bins, height, width, t0[item], window_end(t0[item], t1[item]), bits};
  }
};

struct AtomicAddTo {
  AtomicSum* sums;
  __device__ __forceinline__ void operator()(int64_t cell, int64_t weight) const {
    atomicAdd(sums + cell, static_cast<AtomicSum>(weight));
  }
};

// False: the event is ignored.
__device__ __forceinline__ bool add_event(const Voxels& params, int64_t item, int64_t index, AtomicSum* sums) {
  const Grid grid = params.grid(item);
  const AtomicAddTo add{sums};
  const int64_t t = params.events.t[index], sign = sign_at(params.events, index);
  if (params.rectified) {
    const double x = position_at<double>(params.events.x, params.events.position_dtype, index);
    const double y = position_at<double>(params.events.y, params.events.position_dtype, index);
    return spread_rectified(grid, x, y, t, sign, add);
  }
  const int64_t x = position_at<int64_t>(params.events.x, params.events.position_dtype, index);
  const int64_t y = position_at<int64_t>(params.events.y, params.events.position_dtype, index);
  return spread_pixel(grid, x, y, t, sign, add);
}

// Adds the events of items [first, last) to sums [last - first, bins, height, width].
__global__ void add_events(Voxels params, int64_t first, int64_t last, AtomicSum* sums, AtomicSum* ignored) {
  const int64_t cells = params.bins * params.height * params.width;
  const int64_t end = event_index(params.offsets, last, params.count);
  // Every thread of a block makes the same number of steps: a warp counts what it ignores together.
  for (int64_t start = event_index(params.offsets, first, params.count) + int64_t{blockIdx.x} * blockDim.x; start < end;
       start += item_step()) {
    const int64_t index = start + threadIdx.x;
    const int64_t item = index < end ? item_of(params.offsets, first, last, index) : -1;
    bool used = true;
    if (item >= 0) used = add_event(params, item, index, sums + (item - first) * cells);
    count_together(ignored, item, !used);
  }
}

__global__ void scale_sums(Voxels params, int64_t first, int64_t last, const int64_t* __restrict__ sums,
                           float* __restrict__ voxels) {
  const int64_t cells = params.bins * params.height * params.width;
  for (int64_t item = first + blockIdx.y; item < last; item += gridDim.y) {
    const float scale = voxel_scale(params.grid(item).space_bits);
    for (int64_t cell = first_item(); cell < cells; cell += item_step()) {
      voxels[item * cells + cell] = static_cast<float>(sums[(item - first) * cells + cell]) * scale;
    }
  }
}

std::tuple<Tensor, Tensor> voxelize(Tensor x, Tensor y, Tensor t, Tensor p, Tensor offsets, Tensor t0, Tensor t1,
                                    int64_t bins, int64_t height, int64_t width) {
  const char* op = "voxelize";
  check_voxelize(op, x, y, t, p, offsets, t0, t1, bins, height, width);
  const DeviceCall call(op, t);
  for (Tensor* tensor : {&x, &y, &t, &p, &offsets, &t0, &t1}) *tensor = torch::stable::contiguous(*tensor);
  const int64_t items = offsets.size(0) - 1, cells = bins * height * width;
  const Voxels params{
      {x.const_data_ptr(), y.const_data_ptr(), p.const_data_ptr(), data<int64_t>(t), x.scalar_type(), p.scalar_type()},
      data<int64_t>(offsets),
      data<int64_t>(t0),
      data<int64_t>(t1),
      t.size(0),
      bins,
      height,
      width,
      x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double};
  const Tensor voxels = allocate(op, t, {items, bins, height, width}, ScalarType::Float);
  const Tensor ignored = allocate(op, t, {items}, ScalarType::Long);
  call.clear(ignored);

  // Items are taken a group at a time: the workspace does not grow with the batch, and stays in large caches.
  const int64_t fit = kGroupBytes / static_cast<int64_t>(sizeof(AtomicSum)) / cells;
  const int64_t group = std::min(items, std::max<int64_t>(1, fit));
  const Tensor sums = allocate(op, t, {group, cells}, ScalarType::Long);
  for (int64_t first = 0; first < items; first += group) {
    const int64_t last = std::min(items, first + group);
    call.clear(sums);
    call.launch(add_events, blocks_for(params.count), kThreads, 0, params, first, last, mutable_data<AtomicSum>(sums),
                mutable_data<AtomicSum>(ignored));
    call.launch(scale_sums, batch_grid(cells, last - first), kThreads, 0, params, first, last, data<int64_t>(sums),
                mutable_data<float>(voxels));
  }
  return {voxels, ignored};
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) { m.impl("voxelize", TORCH_BOX(&flowfuse::cuda::voxelize)); }
