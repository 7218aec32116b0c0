#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/volume_lookup.h"
#include "operators/volume_lookup.h"
#include "tensors.h"

namespace flowfuse::cpu {
namespace {

template <int kBytes, class T>
FLOWFUSE_INLINE void tile_forward(const VolumeLookup<T>& params, int64_t index, T* taps) {
  PixelTile<T> tile;
  load_tile(params, index, tile);
  for (int level = 0; level < params.levels; ++level) {
    load_windows(params, level, params.volumes[level].rows, params.volumes[level].columns, tile);
    read_taps(params, tile, level, taps);
    write_values<kBytes>(params, tile, level, taps);
  }
}

// workspace: blocks of the taps of a tile, then those of a row of it for their gradients, and as many more.
template <int kBytes, class T>
FLOWFUSE_INLINE void tile_backward(const VolumeLookup<T>& params, int64_t index, T* workspace) {
  T* taps = workspace;
  T* grad_taps = taps + kTilePixels * params.block();
  T* values = grad_taps + kTileColumns * params.block();
  T gx[kTilePixels] = {}, gy[kTilePixels] = {};
  PixelTile<T> tile;
  load_tile(params, index, tile);
  for (int level = 0; level < params.levels; ++level) {
    const VolumeLevel<T>& map = params.volumes[level];
    load_windows(params, level, map.rows, map.columns, tile);
    if (params.grad_coords != nullptr) read_taps(params, tile, level, taps);
    for (int row = 0; row < tile.rows; ++row) {
      read_gradients(params, tile, level, row, values);
      tap_gradients<kBytes>(params, tile, row, T(1), values, grad_taps);
      if (params.grad_coords != nullptr)
        add_coordinate_gradients<kBytes>(params, tile, level, row, taps, values, gx, gy);
      for (int column = 0; column < tile.columns; ++column) {
        const int i = row * kTileColumns + column;
        T* grad = map.grad + map.slice(params, tile, i);
        for (int64_t cell = 0; cell < map.rows * map.columns; ++cell) grad[cell] = T(0);
        visit_rows(params, tile, level, i, [&](int tap, int64_t cell, int count) FLOWFUSE_INLINE_LAMBDA {
          for (int k = 0; k < count; ++k) grad[cell + k] = grad_taps[(tap + k) * kTileColumns + column];
        });
      }
    }
  }
  write_coordinate_gradients(params, tile, gx, gy);
}

template <class T>
Tensor forward(std::vector<Tensor>& volumes, const Tensor& coords, int64_t radius) {
  const char* op = "volume_lookup";
  VolumeLookup<T> params = lookup_of<T>(volumes, coords, radius);
  const Tensor output = allocate(op, coords, windows_shape(coords, volumes.size(), radius), volumes[0].scalar_type());
  params.output = mutable_data<T>(output);
  const Workers workers(op, output, params.tiles(), kTilePixels * params.block());
  workers.run(0, params.tiles(), [&](int64_t first, int64_t last, void* workspace) {
    FLOWFUSE_VARIANTS(for (int64_t index = first; index < last; ++index)
                          tile_forward<kVectorBytes>(params, index, static_cast<T*>(workspace)))
  });
  return output;
}

Tensor volume_lookup(std::vector<Tensor> volumes, Tensor coords, int64_t radius) {
  check_volume_lookup("volume_lookup", volumes, coords, radius);
  const Tensor exact = converted(coords, ScalarType::Double);
  const bool wide = volumes[0].scalar_type() == ScalarType::Double;
  return wide ? forward<double>(volumes, exact, radius) : forward<float>(volumes, exact, radius);
}

template <class T>
std::tuple<std::vector<Tensor>, Tensor> backward(const Tensor& grad, std::vector<Tensor>& volumes, const Tensor& coords,
                                                 int64_t radius, bool coords_needed) {
  const char* op = "volume_lookup_backward";
  VolumeLookup<T> params = lookup_of<T>(volumes, coords, radius);
  params.grad = data<T>(grad);
  std::vector<Tensor> grads;
  for (size_t level = 0; level < volumes.size(); ++level) {
    grads.push_back(allocate(op, volumes[level], shape_of(volumes[level]), grad.scalar_type(), MemoryFormat::Contiguous,
                             kOnDemandAdvice));
    params.volumes[level].grad = mutable_data<T>(grads.back());
  }
  const Tensor grad_coords = empty_coordinate_gradient(op, grad, coords, coords_needed, params);
  const Workers workers(op, grad, params.tiles(), (kTilePixels + 2 * kTileColumns) * params.block());
  workers.run(0, params.tiles(), [&](int64_t first, int64_t last, void* workspace) {
    FLOWFUSE_VARIANTS(for (int64_t index = first; index < last; ++index)
                          tile_backward<kVectorBytes>(params, index, static_cast<T*>(workspace)))
  });
  return {grads, grad_coords};
}

std::tuple<std::vector<Tensor>, Tensor> volume_lookup_backward(Tensor grad, std::vector<Tensor> volumes, Tensor coords,
                                                               int64_t radius, bool coords_needed) {
  check_volume_lookup("volume_lookup_backward", volumes, coords, radius);
  const ScalarType dtype = volumes[0].scalar_type();
  check_gradient("volume_lookup_backward", grad, windows_shape(coords, volumes.size(), radius), dtype, "coords",
                 coords);
  const Tensor exact = converted(coords, ScalarType::Double);
  const Tensor g = torch::stable::contiguous(grad);
  const auto run = dtype == ScalarType::Double ? backward<double> : backward<float>;
  const auto [grads, grad_coords] = run(g, volumes, exact, radius, coords_needed);
  return {grads, torch::stable::to(grad_coords, coords.scalar_type())};
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("volume_lookup", TORCH_BOX(&flowfuse::cpu::volume_lookup));
  m.impl("volume_lookup_backward", TORCH_BOX(&flowfuse::cpu::volume_lookup_backward));
}
