#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "checks.h"
#include "cpu/dispatch.h"
#include "gradient.h"
#include "tensors.h"

namespace flowfuse {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kGrain = 4;  // rows a thread takes at least

// All images of one call; planes are [B, H, W] unless said otherwise.
template <class T>
struct Images {
  const T *frame0, *frame1;  // [B, channels, H, W]
  const T* events;
  const T* flow;  // [B, 2, H, W] or null
  T *log0, *log1, *change;
  T *mean_a, *mean_b, *var_a, *var_b, *covariance;
  int64_t batch, channels, height, width;
  bool linear;
};

// Calls work(b, y) for every row; rows are independent of each other.
template <class T, class Work>
void for_rows(const Images<T>& images, const Work& work) {
  parallel_for(0, images.batch * images.height, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) work(row / images.height, row % images.height);
  });
}

template <class T>
void take_logs(const Images<T>& images) {
  const int64_t plane = images.height * images.width;
  for_rows(images, [&](int64_t b, int64_t y) {
    const T* frame0 = images.frame0 + b * images.channels * plane;
    const T* frame1 = images.frame1 + b * images.channels * plane;
    for (int64_t index = y * images.width; index < (y + 1) * images.width; ++index) {
      const T log0 = log_intensity<T>(luma<T>(frame0 + index, images.channels, plane), images.linear, nullptr);
      const T log1 = log_intensity<T>(luma<T>(frame1 + index, images.channels, plane), images.linear, nullptr);
      images.log0[b * plane + index] = log0;
      images.log1[b * plane + index] = log1;
      images.change[b * plane + index] = log1 - log0;
    }
  });
}

// Centred two-pass moments of row y: means first, then the deviations from them.
template <class T>
FLOWFUSE_INLINE void row_moments(const Images<T>& images, int64_t b, int64_t y) {
  const int64_t width = images.width, plane = images.height * width;
  const T* a = images.change + b * plane;
  const T* e = images.events + b * plane;
  const int64_t row = b * plane + y * width;
  T *mean_a = images.mean_a + row, *mean_b = images.mean_b + row;
  T *var_a = images.var_a + row, *var_b = images.var_b + row, *covariance = images.covariance + row;
  const Span rows = around(y, images.height);
  for (int64_t x = 0; x < width; ++x) {
    mean_a[x] = mean_b[x] = var_a[x] = var_b[x] = covariance[x] = T(0);
  }
  const auto columns = [&](int64_t dx) __attribute__((always_inline)) {
    return Span{dx < 0 ? -dx : 0, dx > 0 ? width - dx : width};  // x for which x + dx is inside
  };
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t dx = -kReach; dx <= kReach; ++dx) {
      const Span span = columns(dx);
      const T *from_a = a + r * width, *from_b = e + r * width;
      for (int64_t x = span.begin; x < span.end; ++x) {
        mean_a[x] += from_a[x + dx];
        mean_b[x] += from_b[x + dx];
      }
    }
  }
  for (int64_t x = 0; x < width; ++x) {
    const Span inside = around(x, width);
    const T count = static_cast<T>((rows.end - rows.begin) * (inside.end - inside.begin));
    mean_a[x] /= count;
    mean_b[x] /= count;
  }
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t dx = -kReach; dx <= kReach; ++dx) {
      const Span span = columns(dx);
      const T *from_a = a + r * width, *from_b = e + r * width;
      for (int64_t x = span.begin; x < span.end; ++x) {
        const T da = from_a[x + dx] - mean_a[x], db = from_b[x + dx] - mean_b[x];
        var_a[x] += da * da;
        var_b[x] += db * db;
        covariance[x] += da * db;
      }
    }
  }
  for (int64_t x = 0; x < width; ++x) {
    const Span inside = around(x, width);
    const T count = static_cast<T>((rows.end - rows.begin) * (inside.end - inside.begin));
    var_a[x] /= count;
    var_b[x] /= count;
    covariance[x] /= count;
  }
}

template <class T>
void take_moments(const Images<T>& images) {
  for_rows(images, [&](int64_t b, int64_t y) { FLOWFUSE_VARIANTS(row_moments(images, b, y)) });
}

// Central differences of log0 with replicated border.
template <class T>
void differences(const Images<T>& images, int64_t b, int64_t y, int64_t x, T& lx, T& ly) {
  const int64_t height = images.height, width = images.width;
  const T* log0 = images.log0 + b * height * width;
  const int64_t left = x > 0 ? x - 1 : 0, right = x + 1 < width ? x + 1 : x;
  const int64_t up = y > 0 ? y - 1 : 0, down = y + 1 < height ? y + 1 : y;
  lx = (log0[y * width + right] - log0[y * width + left]) / 2;
  ly = (log0[down * width + x] - log0[up * width + x]) / 2;
}

template <class T>
void write_channels(const Images<T>& images, T* output) {
  const int64_t width = images.width, plane = images.height * width;
  for_rows(images, [&](int64_t b, int64_t y) {
    for (int64_t x = 0; x < width; ++x) {
      const int64_t index = y * width + x, at = b * plane + index;
      T* out = output + b * 6 * plane + index;
      T lx, ly;
      differences(images, b, y, x, lx, ly);
      out[0] = lx;
      out[plane] = ly;
      out[2 * plane] = images.change[at];
      out[3 * plane] = images.events[at];
      out[4 * plane] = images.covariance[at] * similarity_scale(images.var_a[at], images.var_b[at]);
      out[5 * plane] = T(0);
      if (images.flow != nullptr) {
        const T* flow = images.flow + b * 2 * plane + index;
        out[5 * plane] = -(lx * flow[0] + ly * flow[plane]);
      }
    }
  });
}

template <class T>
struct Gradients {
  const T* grad;               // [B, 6, H, W]
  T *p, *q, *r;                // [B, H, W], of SimilarityGradient
  T *change, *events;          // gradients in Lt_frame and Lt_event
  T *lx, *ly;                  // gradients in the differences
  T *frame0, *frame1, *flow;   // results
};

template <class T>
void prepare_gradients(const Images<T>& images, const Gradients<T>& out) {
  const int64_t width = images.width, plane = images.height * width;
  for_rows(images, [&](int64_t b, int64_t y) {
    const Span rows = around(y, images.height);
    for (int64_t x = 0; x < width; ++x) {
      const int64_t index = y * width + x, at = b * plane + index;
      const T* grad = out.grad + b * 6 * plane + index;
      const Span columns = around(x, width);
      const T count = static_cast<T>((rows.end - rows.begin) * (columns.end - columns.begin));
      const SimilarityGradient<T> similarity =
          similarity_gradient(grad[4 * plane], count, images.var_a[at], images.var_b[at], images.covariance[at]);
      out.p[at] = similarity.p;
      out.q[at] = similarity.q;
      out.r[at] = similarity.r;
      out.lx[at] = grad[0];
      out.ly[at] = grad[plane];
      if (images.flow != nullptr) {
        T lx, ly;
        differences(images, b, y, x, lx, ly);
        const T* flow = images.flow + b * 2 * plane + index;
        T* grad_flow = out.flow + b * 2 * plane + index;
        out.lx[at] -= grad[5 * plane] * flow[0];
        out.ly[at] -= grad[5 * plane] * flow[plane];
        grad_flow[0] = -grad[5 * plane] * lx;
        grad_flow[plane] = -grad[5 * plane] * ly;
      }
    }
  });
}

// Gathers the gradient of every window that holds a pixel of row y; windows are symmetric.
template <class T>
FLOWFUSE_INLINE void gather_row(const Images<T>& images, const Gradients<T>& out, int64_t b, int64_t y) {
  const int64_t width = images.width, plane = images.height * width;
  const int64_t row = b * plane + y * width;
  const T *a = images.change + row, *e = images.events + row;
  const T* grad = out.grad + b * 6 * plane + y * width;
  T *change = out.change + row, *events = out.events + row;
  for (int64_t x = 0; x < width; ++x) {
    change[x] = grad[2 * plane + x];
    events[x] = grad[3 * plane + x];
  }
  const Span rows = around(y, images.height);
  for (int64_t s = rows.begin; s < rows.end; ++s) {
    for (int64_t dx = -kReach; dx <= kReach; ++dx) {
      const int64_t centre = b * plane + s * width;
      const T *mean_a = images.mean_a + centre, *mean_b = images.mean_b + centre;
      const T *p = out.p + centre, *q = out.q + centre, *r = out.r + centre;
      const int64_t begin = dx < 0 ? -dx : 0, end = dx > 0 ? width - dx : width;
      for (int64_t x = begin; x < end; ++x) {
        const T da = a[x] - mean_a[x + dx], db = e[x] - mean_b[x + dx];
        change[x] += p[x + dx] * db - q[x + dx] * da;
        events[x] += p[x + dx] * da - r[x + dx] * db;
      }
    }
  }
}

// Adjoint of the central differences at (x, y).
template <class T>
T differences_gradient(const Gradients<T>& out, const Images<T>& images, int64_t b, int64_t y, int64_t x) {
  const int64_t height = images.height, width = images.width;
  const T *lx = out.lx + b * height * width, *ly = out.ly + b * height * width;
  T sum = 0;
  sum += x > 0 ? lx[y * width + x - 1] : -lx[y * width + x];
  sum -= x + 1 < width ? lx[y * width + x + 1] : -lx[y * width + x];
  sum += y > 0 ? ly[(y - 1) * width + x] : -ly[y * width + x];
  sum -= y + 1 < height ? ly[(y + 1) * width + x] : -ly[y * width + x];
  return sum / 2;
}

template <class T>
void finish_frames(const Images<T>& images, const Gradients<T>& out) {
  const int64_t width = images.width, plane = images.height * width, channels = images.channels;
  for_rows(images, [&](int64_t b, int64_t y) {
    for (int64_t x = 0; x < width; ++x) {
      const int64_t index = y * width + x, at = b * plane + index;
      const T grad_log[2] = {differences_gradient(out, images, b, y, x) - out.change[at], out.change[at]};
      const T* frames[2] = {images.frame0, images.frame1};
      T* grads[2] = {out.frame0, out.frame1};
      for (int k = 0; k < 2; ++k) {
        T slope;
        log_intensity<T>(luma<T>(frames[k] + b * channels * plane + index, channels, plane), images.linear, &slope);
        T* target = grads[k] + b * channels * plane + index;
        for (int64_t c = 0; c < channels; ++c) {
          target[c * plane] = grad_log[k] * slope * luma_weight<T>(channels, c);
        }
      }
    }
  });
}

// Inputs in the dtype of sums, and the planes of the first stages; holds what Images points to.
template <class T>
struct Prepared {
  Tensor frame0, frame1, events, flow, planes;
  Images<T> images;
};

template <class T>
Prepared<T> prepare(const char* op, const Tensor& frame0, const Tensor& frame1, const Tensor& event_sum,
                    const std::optional<Tensor>& flow, bool linear) {
  const ScalarType dtype = sum_dtype(frame0.scalar_type());
  Prepared<T> held{converted(frame0, dtype), converted(frame1, dtype), converted(event_sum, dtype),
                   flow.has_value() ? converted(*flow, dtype) : event_sum, event_sum, {}};
  const int64_t size = frame0.size(0) * frame0.size(2) * frame0.size(3);
  held.planes = allocate(op, event_sum, {8, size}, dtype);
  T* plane = mutable_data<T>(held.planes);
  held.images = {data<T>(held.frame0), data<T>(held.frame1), data<T>(held.events),
                 flow.has_value() ? data<T>(held.flow) : nullptr,
                 plane, plane + size, plane + 2 * size, plane + 3 * size, plane + 4 * size, plane + 5 * size,
                 plane + 6 * size, plane + 7 * size,
                 frame0.size(0), frame0.size(1), frame0.size(2), frame0.size(3), linear};
  take_logs(held.images);
  take_moments(held.images);
  return held;
}

template <class T>
Tensor forward(const Tensor& frame0, const Tensor& frame1, const Tensor& event_sum,
               const std::optional<Tensor>& flow, bool linear) {
  const char* op = "common_gradient";
  const Prepared<T> held = prepare<T>(op, frame0, frame1, event_sum, flow, linear);
  const Tensor output = allocate(op, event_sum, {frame0.size(0), 6, frame0.size(2), frame0.size(3)},
                                 event_sum.scalar_type());
  write_channels(held.images, mutable_data<T>(output));
  return output;
}

Tensor common_gradient(Tensor frame0, Tensor frame1, Tensor event_sum, std::optional<Tensor> flow, bool linear) {
  check_common_gradient(frame0, frame1, event_sum, flow);
  return frame0.scalar_type() == ScalarType::Double ? forward<double>(frame0, frame1, event_sum, flow, linear)
                                                    : forward<float>(frame0, frame1, event_sum, flow, linear);
}

using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
FourTensors backward(const Tensor& grad, const Tensor& frame0, const Tensor& frame1, const Tensor& event_sum,
                     const std::optional<Tensor>& flow, bool linear) {
  const char* op = "common_gradient_backward";
  const Prepared<T> held = prepare<T>(op, frame0, frame1, event_sum, flow, linear);
  const Tensor g = torch::stable::contiguous(grad);
  const ScalarType dtype = event_sum.scalar_type();
  const Tensor grad_frame0 = allocate(op, frame0, shape_of(frame0), dtype);
  const Tensor grad_frame1 = allocate(op, frame1, shape_of(frame1), dtype);
  const Tensor grad_events = allocate(op, event_sum, shape_of(event_sum), dtype);
  const Tensor grad_flow =
      allocate(op, event_sum, flow.has_value() ? shape_of(*flow) : std::vector<int64_t>{0}, dtype);
  const int64_t size = event_sum.numel();
  const Tensor planes = allocate(op, event_sum, {6, size}, dtype);
  T* plane = mutable_data<T>(planes);
  const Gradients<T> out{data<T>(g), plane, plane + size, plane + 2 * size, plane + 3 * size,
                         mutable_data<T>(grad_events), plane + 4 * size, plane + 5 * size,
                         mutable_data<T>(grad_frame0), mutable_data<T>(grad_frame1), mutable_data<T>(grad_flow)};
  const Images<T>& images = held.images;
  prepare_gradients(images, out);
  for_rows(images, [&](int64_t b, int64_t y) { FLOWFUSE_VARIANTS(gather_row(images, out, b, y)) });
  finish_frames(images, out);
  const ScalarType given = frame0.scalar_type();
  return {torch::stable::to(grad_frame0, given), torch::stable::to(grad_frame1, given), grad_events, grad_flow};
}

FourTensors common_gradient_backward(Tensor grad, Tensor frame0, Tensor frame1, Tensor event_sum,
                                     std::optional<Tensor> flow, bool linear) {
  check_common_gradient(frame0, frame1, event_sum, flow);
  const ScalarType dtype = sum_dtype(frame0.scalar_type());
  check_gradient("common_gradient_backward", grad, {frame0.size(0), 6, frame0.size(2), frame0.size(3)}, dtype,
                 "frame0", frame0);
  return dtype == ScalarType::Double ? backward<double>(grad, frame0, frame1, event_sum, flow, linear)
                                     : backward<float>(grad, frame0, frame1, event_sum, flow, linear);
}

}  // namespace
}  // namespace flowfuse

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("common_gradient", TORCH_BOX(&flowfuse::common_gradient));
  m.impl("common_gradient_backward", TORCH_BOX(&flowfuse::common_gradient_backward));
}
