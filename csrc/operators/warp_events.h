// warp_events for every device: its check, where an event moves and what it votes for. Votes are integers, so that no
// sum depends on its order.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "events.h"
#include "tensors.h"

namespace flowfuse {

constexpr int64_t kMaxPoints = 16;  // control points of a trajectory

inline void check_warp_events(const char* op, const Tensor& x, const Tensor& y, const Tensor& t, const Tensor& p,
                              const Tensor& offsets, const Tensor& trajectory, const Tensor& t0, const Tensor& t1,
                              const Tensor& t_ref, const std::string& mode, int64_t height, int64_t width) {
  check_events(op, x, y, t, p, offsets, {{"t0", &t0}, {"t1", &t1}, {"t_ref", &t_ref}});
  if (mode != "signed" && mode != "unsigned" && mode != "split") {
    refuse(op, "mode must be 'signed', 'unsigned' or 'split', got '", mode, "'");
  }
  check_range(op, "height", height, 1, kMaxSide);
  check_range(op, "width", width, 1, kMaxSide);
  const int64_t items = offsets.size(0) - 1;
  const std::vector<int64_t> shape = shape_of(trajectory), flow{items, 2, height, width};
  const bool points =
      shape.size() == 5 && shape[1] >= 1 && std::vector<int64_t>{shape[0], shape[2], shape[3], shape[4]} == flow;
  if (shape != flow && !points) {
    const std::string start = "[" + std::to_string(items) + ", ";
    const std::string end = "2, " + std::to_string(height) + ", " + std::to_string(width) + "]";
    refuse_shape(op, "trajectory", trajectory, start + end + " or " + start + "n, " + end);
  }
  if (points && shape[1] > kMaxPoints) {
    refuse(op, "trajectory must have at most ", kMaxPoints, " control points, got ", shape[1]);
  }
  check_dtype(op, "trajectory", trajectory, kCoordinateDtypes);
  check_device(op, "trajectory", trajectory, "x", x);
}

// ---- fixed point --------------------------------------------------------------------

// Fraction bits of a vote's weight for an item of `count` events. A weight is at most 1 and an event votes at most
// once for a cell, so that a sum stays below 2^62; rounding changes it by at most votes * 2^-(bits + 1).
FLOWFUSE_INLINE int vote_bits(int64_t count) {
  const int bits = 62 - bit_length(count);
  return bits < 48 ? bits : 48;
}

// 2^exponent, for exponents of normal numbers.
FLOWFUSE_INLINE double power_of_two(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

constexpr uint64_t kInfinityBits = uint64_t{0x7ff} << 52;

// Numbers that are not negative are in the order of their bits; NaN comes after infinity.
FLOWFUSE_INLINE uint64_t ordered_bits(double magnitude) {
  uint64_t bits;
  memcpy(&bits, &magnitude, sizeof bits);
  return bits;
}

// Fraction bits of the shares of a gradient for an item of `count` events whose slopes are at most the number of
// which these are the ordered_bits. The four shares of an event add up to its slope, so that a sum stays below
// 2^63; for a million events 2^-41 of the largest slope is still seen. 2^bits stays a normal number, which costs
// precision below slopes of 1e-288 only.
FLOWFUSE_INLINE int share_bits(uint64_t largest_slope, int64_t count) {
  const int exponent = static_cast<int>(largest_slope >> 52) - 1023;
  const int bits = 61 - bit_length(count) - exponent;
  return largest_slope == 0 ? 0 : bits < 1022 ? bits : 1022;
}

// To the nearest integer, half to even.
FLOWFUSE_INLINE int64_t to_fixed(float value) { return static_cast<int64_t>(__builtin_rintf(value)); }
FLOWFUSE_INLINE int64_t to_fixed(double value) { return static_cast<int64_t>(__builtin_rint(value)); }

// ---- motion and votes of one event ----------------------------------------------------

enum class VoteMode { kSigned, kUnsigned, kSplit };

// One call. Times and positions are taken apart in the dtype of the trajectory.
template <class T>
struct Warp {
  Events events;
  const int64_t *offsets, *t0, *t1, *t_ref;
  const T* trajectory;  // [items, points, 2, height, width]
  int64_t count, items, points, height, width;
  VoteMode mode;
  T binomials[kMaxPoints];  // binom(points, k) at k - 1

  FLOWFUSE_INLINE int64_t plane() const { return height * width; }
  FLOWFUSE_INLINE int64_t channels() const { return mode == VoteMode::kSplit ? 2 : 1; }
};

// An event in its window and on the sensor.
template <class T>
struct WarpEvent {
  T x, y, tau, tau_ref;
};

template <class T>
FLOWFUSE_INLINE bool read_event(const Warp<T>& params, int64_t item, int64_t index, WarpEvent<T>& event) {
  const int64_t t = params.events.t[index], t0 = params.t0[item], t1 = window_end(t0, params.t1[item]);
  if (t < t0 || t >= t1) return false;
  const T x = position_at<T>(params.events.x, params.events.position_dtype, index);
  const T y = position_at<T>(params.events.y, params.events.position_dtype, index);
  const T width = static_cast<T>(params.width), height = static_cast<T>(params.height);
  if (!(x > -1 && x < width && y > -1 && y < height)) return false;  // NaN is left out
  // A reference time may be as far away as int64 goes: unsigned numbers wrap.
  const int64_t ahead = static_cast<int64_t>(static_cast<uint64_t>(params.t_ref[item]) - static_cast<uint64_t>(t0));
  const T duration = static_cast<T>(t1 - t0);
  event = {x, y, static_cast<T>(t - t0) / duration, static_cast<T>(ahead) / duration};
  return true;
}

FLOWFUSE_INLINE float floor_of(float value) { return __builtin_floorf(value); }
FLOWFUSE_INLINE double floor_of(double value) { return __builtin_floor(value); }

// The square of four pixels around a position.
template <class T>
struct Square {
  T column, row;   // of its first pixel: whole numbers, but a position moved far away fits no integer
  T right, lower;  // weights of the second column and row
};

template <class T>
FLOWFUSE_INLINE Square<T> square_at(T x, T y) {
  const T column = floor_of(x), row = floor_of(y);
  return {column, row, x - column, y - row};
}

template <class T>
FLOWFUSE_INLINE T corner_weight(const Square<T>& square, int corner) {
  return (corner & 1 ? square.right : 1 - square.right) * (corner & 2 ? square.lower : 1 - square.lower);
}

// The pixel at which a corner of an event's square reads the motion; the border is repeated.
template <class T>
FLOWFUSE_INLINE int64_t source_pixel(const Warp<T>& params, const Square<T>& square, int corner) {
  int64_t column = static_cast<int64_t>(square.column) + (corner & 1);
  int64_t row = static_cast<int64_t>(square.row) + (corner >> 1);
  column = column < 0 ? 0 : column >= params.width ? params.width - 1 : column;
  row = row < 0 ? 0 : row >= params.height ? params.height - 1 : row;
  return row * params.width + column;
}

// Weight of control point k in the displacement at tau: binom(n, k) tau^k (1 - tau)^(n - k).
template <class T>
FLOWFUSE_INLINE T bernstein(const Warp<T>& params, int64_t k, T tau) {
  T value = params.binomials[k - 1];
  for (int64_t i = 0; i < k; ++i) value *= tau;
  for (int64_t i = k; i < params.points; ++i) value *= 1 - tau;
  return value;
}

// How far an event moves for each pixel of control point k.
template <class T>
FLOWFUSE_INLINE T influence(const Warp<T>& params, int64_t k, const WarpEvent<T>& event) {
  if (params.points == 1) return event.tau_ref - event.tau;  // the same, without loops
  return bernstein(params, k, event.tau_ref) - bernstein(params, k, event.tau);
}

// Moves the position of an event to the reference time.
template <class T>
FLOWFUSE_INLINE void move_event(const Warp<T>& params, int64_t item, const WarpEvent<T>& event, T& x, T& y) {
  const Square<T> square = square_at(event.x, event.y);
  int64_t pixels[4];
  T weights[4];
  for (int corner = 0; corner < 4; ++corner) {
    pixels[corner] = source_pixel(params, square, corner);
    weights[corner] = corner_weight(square, corner);
  }
  const T* plane = params.trajectory + item * params.points * 2 * params.plane();
  T dx = 0, dy = 0;
  for (int64_t k = 1; k <= params.points; ++k) {
    T point_x = 0, point_y = 0;
    for (int corner = 0; corner < 4; ++corner) {
      point_x += weights[corner] * plane[pixels[corner]];
      point_y += weights[corner] * plane[params.plane() + pixels[corner]];
    }
    const T share = influence(params, k, event);
    dx += share * point_x;
    dy += share * point_y;
    plane += 2 * params.plane();
  }
  x = event.x + dx;
  y = event.y + dy;
}

// Whether a corner of the square around a moved event is a pixel of the image; NaN and infinity are not.
template <class T>
FLOWFUSE_INLINE bool in_image(const Warp<T>& params, const Square<T>& square, int corner) {
  const T column = square.column + (corner & 1), row = square.row + (corner >> 1);
  return column >= 0 && column < static_cast<T>(params.width) && row >= 0 && row < static_cast<T>(params.height);
}

template <class T>
FLOWFUSE_INLINE int64_t image_pixel(const Warp<T>& params, const Square<T>& square, int corner) {
  return (static_cast<int64_t>(square.row) + (corner >> 1)) * params.width + static_cast<int64_t>(square.column) +
         (corner & 1);
}

// First pixel of the image plane for which an event votes.
template <class T>
FLOWFUSE_INLINE int64_t image_plane(const Warp<T>& params, int64_t item, int64_t sign) {
  return (item * params.channels() + (params.mode == VoteMode::kSplit && sign > 0 ? 1 : 0)) * params.plane();
}

template <class T>
FLOWFUSE_INLINE int64_t vote_of(const Warp<T>& params, int64_t sign) {
  return params.mode == VoteMode::kSigned ? sign : 1;
}

// Gradient in the place an event is moved to, from the gradient of the image: that of the square which floor
// chooses. It is 0 where no vote is in the image, for NaN too.
template <class T>
FLOWFUSE_INLINE void place_gradient(const Warp<T>& params, const T* grad, int64_t item, int64_t sign, T x, T y, T& gx,
                                    T& gy) {
  const Square<T> square = square_at(x, y);
  const T* plane = grad + image_plane(params, item, sign);
  gx = 0;
  gy = 0;
  for (int corner = 0; corner < 4; ++corner) {
    if (!in_image(params, square, corner)) continue;
    const T g = plane[image_pixel(params, square, corner)] * static_cast<T>(vote_of(params, sign));
    gx += (corner & 1 ? g : -g) * (corner & 2 ? square.lower : 1 - square.lower);
    gy += (corner & 2 ? g : -g) * (corner & 1 ? square.right : 1 - square.right);
  }
}

// The arguments of a call after their check, made contiguous. They must live as long as its parameters.
struct WarpTensors {
  Tensor x, y, t, p, offsets, trajectory, t0, t1, t_ref;
  VoteMode mode;
  int64_t height, width;

  WarpTensors(const Tensor& x_, const Tensor& y_, const Tensor& t_, const Tensor& p_, const Tensor& offsets_,
              const Tensor& trajectory_, const Tensor& t0_, const Tensor& t1_, const Tensor& t_ref_,
              const std::string& mode_, int64_t height_, int64_t width_)
      : x(torch::stable::contiguous(x_)),
        y(torch::stable::contiguous(y_)),
        t(torch::stable::contiguous(t_)),
        p(torch::stable::contiguous(p_)),
        offsets(torch::stable::contiguous(offsets_)),
        trajectory(torch::stable::contiguous(trajectory_)),
        t0(torch::stable::contiguous(t0_)),
        t1(torch::stable::contiguous(t1_)),
        t_ref(torch::stable::contiguous(t_ref_)),
        mode(mode_ == "signed"  ? VoteMode::kSigned
             : mode_ == "split" ? VoteMode::kSplit
                                : VoteMode::kUnsigned),
        height(height_),
        width(width_) {}

  std::vector<int64_t> image_shape() const {
    return {trajectory.size(0), mode == VoteMode::kSplit ? 2 : 1, height, width};
  }

  template <class T>
  Warp<T> params() const {
    Warp<T> params{};
    params.events = {x.const_data_ptr(), y.const_data_ptr(), p.const_data_ptr(),
                     data<int64_t>(t),   x.scalar_type(),    p.scalar_type()};
    params.offsets = data<int64_t>(offsets);
    params.t0 = data<int64_t>(t0);
    params.t1 = data<int64_t>(t1);
    params.t_ref = data<int64_t>(t_ref);
    params.trajectory = data<T>(trajectory);
    params.count = t.size(0);
    params.items = trajectory.size(0);
    params.points = trajectory.dim() == 5 ? trajectory.size(1) : 1;  // a flow is a trajectory of degree 1
    params.height = height;
    params.width = width;
    params.mode = mode;
    int64_t binomial = 1;
    for (int64_t k = 1; k <= params.points; ++k) {
      binomial = binomial * (params.points - k + 1) / k;
      params.binomials[k - 1] = static_cast<T>(binomial);
    }
    return params;
  }
};

}  // namespace flowfuse
