#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/elementary.h"
#include "cpu/vector.h"
#include "operators/common_gradient.h"
#include "tensors.h"

namespace flowfuse::cpu {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kGrain = 32;   // rows a thread takes at least: it makes up to 12 more to begin with
constexpr int64_t kMargin = 16;  // zeros on both sides of a row of scratch memory
constexpr int64_t kRing = 8;     // rows kept of a plane: those of a window, and one before

// All images of one call, contiguous.
template <class T>
struct Images {
  const T *frame0, *frame1;  // [B, channels, H, W]
  const T* events;           // [B, H, W]
  const T* flow;             // [B, 2, H, W] or null
  int64_t batch, channels, height, width;
  bool linear;
};

// The last rows of a plane.
template <class T>
struct Ring {
  T* first;
  int64_t stride;

  FLOWFUSE_INLINE T* row(int64_t y) const { return first + y % kRing * stride; }
};

// Hands out rows of zeros for one thread. All hold whole vectors. What lies in the lanes past the width is finite in the
// rows that windows are taken of; in those made from windows it may be anything, and is cleared before it is read.
template <class T>
struct Scratch {
  T* next;
  int64_t stride;

  FLOWFUSE_INLINE T* row() {
    T* begin = next;
    next += stride;
    for (int64_t x = 0; x < stride; ++x) begin[x] = T(0);
    return begin + kMargin;
  }
  FLOWFUSE_INLINE Ring<T> ring() {
    T* first = row();
    for (int64_t y = 1; y < kRing; ++y) row();
    return {first, stride};
  }
};

// An odd number of cache lines (of float): equal columns of the rows do not compete for the same part of a cache.
FLOWFUSE_INLINE int64_t scratch_stride(int64_t width) {
  return ((whole_lanes(width) + 2 * kMargin) / kMostLanes | 1) * kMostLanes;
}

// Functions that are vectorized with the loop around them.
struct InlineFunctions {
  template <class T>
  static FLOWFUSE_INLINE T log(T x) {
    return logarithm(x);
  }
  template <class T>
  static FLOWFUSE_INLINE T decoding_power(T base) {
    return power_2_4(base);
  }
};

// Log intensity of one row and, when kSlope, d log / d luma.
template <bool kSlope, class T>
FLOWFUSE_INLINE void load_logs(const Images<T>& images, const T* frame, T* logs, T* slopes) {
  const int64_t width = images.width, lanes = whole_lanes(width), plane = images.height * width;
  if (images.channels == 1) {
    for (int64_t x = 0; x < width; ++x) logs[x] = luma<T>(frame + x, 1, plane);
  } else {
    for (int64_t x = 0; x < width; ++x) logs[x] = luma<T>(frame + x, 3, plane);
  }
  for (int64_t x = width; x < lanes; ++x) logs[x] = T(0);
  const auto decode = [&](bool linear) FLOWFUSE_INLINE_LAMBDA {
#pragma GCC ivdep
    for (int64_t x = 0; x < lanes; ++x) {
      T slope = T(0);
      logs[x] = log_intensity<T, InlineFunctions>(logs[x], linear, kSlope ? &slope : nullptr);
      if (kSlope) slopes[x] = slope;
    }
  };
  if (images.linear) {
    decode(true);
  } else {
    decode(false);
  }
}

// The signals of the rows around the one in work.
template <class T>
struct Signals {
  Ring<T> log0, change, events;
  Ring<T> slope0, slope1;  // of the logs in the lumas; only with kSlope

  template <bool kSlope>
  static FLOWFUSE_INLINE Signals make(Scratch<T>& scratch) {
    Signals made{scratch.ring(), scratch.ring(), scratch.ring(), {}, {}};
    if (kSlope) {
      made.slope0 = scratch.ring();
      made.slope1 = scratch.ring();
    }
    return made;
  }

  template <bool kSlope>
  FLOWFUSE_INLINE void load_row(const Images<T>& images, int64_t b, int64_t y) const {
    const int64_t width = images.width, lanes = whole_lanes(width);
    const int64_t at = (b * images.channels * images.height + y) * width;
    T *log_row = log0.row(y), *change_row = change.row(y), *event_row = events.row(y);
    load_logs<kSlope>(images, images.frame0 + at, log_row, kSlope ? slope0.row(y) : nullptr);
    load_logs<kSlope>(images, images.frame1 + at, change_row, kSlope ? slope1.row(y) : nullptr);
#pragma GCC ivdep
    for (int64_t x = 0; x < lanes; ++x) change_row[x] -= log_row[x];
    log_row[-1] = log_row[0];  // the replicated border of the differences
    log_row[width] = log_row[width - 1];
    const T* given = images.events + (b * images.height + y) * width;
    for (int64_t x = 0; x < width; ++x) event_row[x] = given[x];
  }
};

// Means of a = change and b = events over a window, from the values at its centre; sums of products of deviations from
// the means.
template <class T>
struct Moments {
  T mean_a, mean_b, square_a, square_b, product;
};

// The moments of the windows of one row are taken in two steps: of each column over the rows of the window, then
// over its columns. With m the mean of a column, sum (a - mean)^2 = sum (a - m)^2 + rows sum (m - mean)^2, so that
// deviations are always from a mean of their own, in 14 steps for 49. All means are kept as differences from the value in
// the row of the window's centre: a rounded mean would err with the size of the values, and that to first order.
template <class T>
struct ColumnMoments {
  T *mean_a, *mean_b, *square_a, *square_b, *product;

  static FLOWFUSE_INLINE ColumnMoments make(Scratch<T>& scratch) {
    return {scratch.row(), scratch.row(), scratch.row(), scratch.row(), scratch.row()};
  }

  template <bool kWhole>
  FLOWFUSE_INLINE void compute(const Signals<T>& signals, int64_t y, Span rows, int64_t lanes) const {
    const T *a[kWindowSide], *b[kWindowSide];
    T share[kWindowSide];  // 0 for rows outside the image, for which one inside stands
    for (int k = 0; k < kWindowSide; ++k) {
      const int64_t row = y + k - kReach;
      const bool inside = row >= rows.begin && row < rows.end;
      a[k] = signals.change.row(inside ? row : y);
      b[k] = signals.events.row(inside ? row : y);
      share[k] = inside ? T(1) : T(0);
    }
    const T part = 1 / static_cast<T>(rows.end - rows.begin);
    ColumnMoments out = *this;
#pragma GCC ivdep
    for (int64_t x = 0; x < lanes; ++x) {
      const T centre_a = a[kReach][x], centre_b = b[kReach][x];
      T sum_a = 0, sum_b = 0;
#pragma GCC unroll 7
      for (int k = 0; k < kWindowSide; ++k) {  // a row outside the image stands for the centre's: its share is 0
        sum_a += a[k][x] - centre_a;
        sum_b += b[k][x] - centre_b;
      }
      const T middle_a = sum_a * part, middle_b = sum_b * part;
      T aa = 0, bb = 0, ab = 0;
#pragma GCC unroll 7
      for (int k = 0; k < kWindowSide; ++k) {
        const T da = (a[k][x] - centre_a) - middle_a, db = (b[k][x] - centre_b) - middle_b;
        const T part_a = kWhole ? da : share[k] * da, part_b = kWhole ? db : share[k] * db;
        aa += part_a * da;
        bb += part_b * db;
        ab += part_a * db;
      }
      out.mean_a[x] = middle_a;
      out.mean_b[x] = middle_b;
      out.square_a[x] = aa;
      out.square_b[x] = bb;
      out.product[x] = ab;
    }
  }

  // Of the columns around x, each of so many rows: all seven, or where not kWhole those inside the image.
  template <bool kWhole>
  FLOWFUSE_INLINE Moments<T> over(const T* centre_a, const T* centre_b, int32_t x, int32_t width, T rows,
                                  T& columns) const {
    T a[kWindowSide], b[kWindowSide], share[kWindowSide], sum_a = 0, sum_b = 0, aa = 0, bb = 0, ab = 0;
    columns = 0;
#pragma GCC unroll 7
    for (int k = 0; k < kWindowSide; ++k) {
      const int32_t at = x + k - kReach;
      share[k] = kWhole || (at >= 0 && at < width) ? T(1) : T(0);
      columns += share[k];
      a[k] = (centre_a[at] - centre_a[x]) + mean_a[at];
      b[k] = (centre_b[at] - centre_b[x]) + mean_b[at];
      sum_a += kWhole ? a[k] : share[k] * a[k];
      sum_b += kWhole ? b[k] : share[k] * b[k];
    }
    const T part = 1 / columns, middle_a = sum_a * part, middle_b = sum_b * part;
    T within_aa = 0, within_bb = 0, within_ab = 0;
#pragma GCC unroll 7
    for (int k = 0; k < kWindowSide; ++k) {
      const int32_t at = x + k - kReach;
      const T da = a[k] - middle_a, db = b[k] - middle_b;
      const T part_a = kWhole ? da : share[k] * da, part_b = kWhole ? db : share[k] * db;
      aa += part_a * da;
      bb += part_b * db;
      ab += part_a * db;
      within_aa += kWhole ? square_a[at] : share[k] * square_a[at];
      within_bb += kWhole ? square_b[at] : share[k] * square_b[at];
      within_ab += kWhole ? product[at] : share[k] * product[at];
    }
    return {middle_a, middle_b, within_aa + rows * aa, within_bb + rows * bb, within_ab + rows * ab};
  }

  // Calls work(x, share, moments) for the windows around all x of row y; share is one over the number of a window's
  // pixels.
  template <class Work>
  FLOWFUSE_INLINE void for_windows(const Signals<T>& signals, int64_t y, int64_t height, int64_t width,
                                   const Work& work) const {
    const Span rows = around(y, height);
    const int32_t lanes = static_cast<int32_t>(whole_lanes(width)), columns = static_cast<int32_t>(width);
    if (rows.end - rows.begin == kWindowSide) {
      compute<true>(signals, y, rows, lanes);
    } else {
      compute<false>(signals, y, rows, lanes);
    }
    const T down = static_cast<T>(rows.end - rows.begin);
    const ColumnMoments from = *this;
    const T *a = signals.change.row(y), *b = signals.events.row(y);
    const auto cut = [=](int32_t begin, int32_t end) FLOWFUSE_INLINE_LAMBDA {
#pragma GCC ivdep
      for (int32_t x = begin; x < end; ++x) {
        T across;
        const Moments<T> moments = from.template over<false>(a, b, x, columns, down, across);
        work(x, 1 / (down * across), moments);
      }
    };
    // Whole vectors: in the first and the last, windows are cut off.
    constexpr int32_t kVector = static_cast<int32_t>(kMostLanes);
    const int32_t inner = (columns - kReach) / kVector * kVector;
    if (inner <= kVector) return cut(0, lanes);
    cut(0, kVector);
    const T share = 1 / (down * kWindowSide);
#pragma GCC ivdep
    for (int32_t x = kVector; x < inner; ++x) {
      T across;
      work(x, share, from.template over<true>(a, b, x, columns, down, across));
    }
    cut(inner, lanes);
  }
};

// Calls work(b, begin, end) for the parts of rows [first, last) of all images that lie in one image.
template <class Work>
FLOWFUSE_INLINE void for_images(int64_t height, int64_t first, int64_t last, const Work& work) {
  while (first < last) {
    const int64_t b = first / height, end = last < (b + 1) * height ? last : (b + 1) * height;
    work(b, first - b * height, end - b * height);
    first = end;
  }
}

constexpr int64_t kForwardRows = 3 * kRing + 6;

template <class T>
FLOWFUSE_INLINE void forward_rows(const Images<T>& images, T* output, Scratch<T> scratch, int64_t first, int64_t last) {
  const int64_t height = images.height, width = images.width, plane = height * width;
  const Signals<T> signals = Signals<T>::template make<false>(scratch);
  const ColumnMoments<T> columns = ColumnMoments<T>::make(scratch);
  T* similarity = scratch.row();
  for_images(height, first, last, [&](int64_t b, int64_t begin, int64_t end) FLOWFUSE_INLINE_LAMBDA {
    int64_t ready = around(begin, height).begin;  // rows of signals before this one are made
    for (int64_t y = begin; y < end; ++y) {
      for (; ready < around(y, height).end; ++ready) signals.template load_row<false>(images, b, ready);
      columns.for_windows(signals, y, height, width,
                          [=](int32_t x, T share, const Moments<T>& m) FLOWFUSE_INLINE_LAMBDA {
                            const T scale = similarity_scale(m.square_a * share, m.square_b * share);
                            similarity[x] = m.product * share * scale;
                          });
      const T *log = signals.log0.row(y), *up = signals.log0.row(y > 0 ? y - 1 : y);
      const T* down = signals.log0.row(y + 1 < height ? y + 1 : y);
      const T *change = signals.change.row(y), *events = signals.events.row(y);
      T* out = output + b * 6 * plane + y * width;
      const T* flow = images.flow == nullptr ? nullptr : images.flow + b * 2 * plane + y * width;
#pragma GCC ivdep
      for (int64_t x = 0; x < width; ++x) {
        out[x] = (log[x + 1] - log[x - 1]) / 2;
        out[plane + x] = (down[x] - up[x]) / 2;
        out[2 * plane + x] = change[x];
        out[3 * plane + x] = events[x];
        out[4 * plane + x] = similarity[x];
      }
      if (flow == nullptr) {
        for (int64_t x = 0; x < width; ++x) out[5 * plane + x] = T(0);
      } else {
#pragma GCC ivdep
        for (int64_t x = 0; x < width; ++x) {
          out[5 * plane + x] = -(out[x] * flow[x] + out[plane + x] * flow[plane + x]);
        }
      }
    }
  });
}

template <class T>
struct Gradients {
  const T* grad;                       // [B, 6, H, W]
  T *frame0, *frame1, *events, *flow;  // results
};

// p, q and r of SimilarityGradient for the windows around the rows in work, the values at their centres and their means
// from those.
template <class T>
struct WindowGradients {
  Ring<T> centre_a, centre_b, mean_a, mean_b, p, q, r;

  static FLOWFUSE_INLINE WindowGradients make(Scratch<T>& scratch) {
    return {scratch.ring(), scratch.ring(), scratch.ring(), scratch.ring(),
            scratch.ring(), scratch.ring(), scratch.ring()};
  }

  // grad: of S, a row.
  FLOWFUSE_INLINE void load_row(const Signals<T>& signals, const ColumnMoments<T>& columns, const T* grad, int64_t y,
                                int64_t height, int64_t width) const {
    const T *a = signals.change.row(y), *b = signals.events.row(y);
    T *to_centre_a = centre_a.row(y), *to_centre_b = centre_b.row(y);
    T *to_mean_a = mean_a.row(y), *to_mean_b = mean_b.row(y), *to_p = p.row(y), *to_q = q.row(y), *to_r = r.row(y);
    columns.for_windows(signals, y, height, width, [=](int32_t x, T share, const Moments<T>& m) FLOWFUSE_INLINE_LAMBDA {
      const SimilarityGradient<T> found =
          similarity_gradient(grad[x], share, m.square_a * share, m.square_b * share, m.product * share);
      to_centre_a[x] = a[x];
      to_centre_b[x] = b[x];
      to_mean_a[x] = m.mean_a;
      to_mean_b[x] = m.mean_b;
      to_p[x] = found.p;
      to_q[x] = found.q;
      to_r[x] = found.r;
    });
  }
};

// Pixel j receives from every window that holds it p (b_j - mean_b) - q (a_j - mean_a), and the like for b. Summed in
// two steps too: first, for each column, what its own pixel i of the row receives (own_a, own_b) and the sums of p, q
// and r; then over the columns own_a + sum_p (b_j - b_i) - sum_q (a_j - a_i). The windows summed hold both pixels, and
// p, q and r are small where deviations in the window are large: p (b_j - b_i) has the bound of p (b_j - mean_b), but
// for a factor of 2, and rounding errors are as small as those of the 49 products. (b_j sum p - sum p mean_b cancels.)
template <class T>
struct ColumnGradients {
  T *own_a, *own_b, *p, *q, *r;

  static FLOWFUSE_INLINE ColumnGradients make(Scratch<T>& scratch) {
    return {scratch.row(), scratch.row(), scratch.row(), scratch.row(), scratch.row()};
  }

  // zeros: a row of them.
  FLOWFUSE_INLINE void compute(const Signals<T>& signals, const WindowGradients<T>& windows, const T* zeros, int64_t y,
                               int64_t height, int64_t width) const {
    const T *a = signals.change.row(y), *b = signals.events.row(y);
    const T *centre_a[kWindowSide], *centre_b[kWindowSide], *mean_a[kWindowSide], *mean_b[kWindowSide];
    const T *from_p[kWindowSide], *from_q[kWindowSide], *from_r[kWindowSide];
    for (int k = 0; k < kWindowSide; ++k) {
      const int64_t row = y + k - kReach;
      const bool inside = row >= 0 && row < height;
      centre_a[k] = windows.centre_a.row(inside ? row : y);
      centre_b[k] = windows.centre_b.row(inside ? row : y);
      mean_a[k] = windows.mean_a.row(inside ? row : y);
      mean_b[k] = windows.mean_b.row(inside ? row : y);
      from_p[k] = inside ? windows.p.row(row) : zeros;
      from_q[k] = inside ? windows.q.row(row) : zeros;
      from_r[k] = inside ? windows.r.row(row) : zeros;
    }
    const int64_t lanes = whole_lanes(width);
    const ColumnGradients out = *this;
#pragma GCC ivdep
    for (int64_t x = 0; x < lanes; ++x) {
      T sum_a = 0, sum_b = 0, sum_p = 0, sum_q = 0, sum_r = 0;
#pragma GCC unroll 7
      for (int k = 0; k < kWindowSide; ++k) {
        const T da = (a[x] - centre_a[k][x]) - mean_a[k][x], db = (b[x] - centre_b[k][x]) - mean_b[k][x];
        sum_a += from_p[k][x] * db - from_q[k][x] * da;
        sum_b += from_p[k][x] * da - from_r[k][x] * db;
        sum_p += from_p[k][x];
        sum_q += from_q[k][x];
        sum_r += from_r[k][x];
      }
      out.own_a[x] = sum_a;
      out.own_b[x] = sum_b;
      out.p[x] = sum_p;
      out.q[x] = sum_q;
      out.r[x] = sum_r;
    }
    for (T* row : {own_a, own_b, p, q, r}) {
      for (int64_t x = width; x < lanes; ++x) row[x] = T(0);
    }
  }

  // The gradients of row y in change and events through S.
  FLOWFUSE_INLINE void gather(const Signals<T>& signals, int64_t y, int64_t width, T* change, T* events) const {
    const T *a = signals.change.row(y), *b = signals.events.row(y);
    const int64_t lanes = whole_lanes(width);
    const ColumnGradients from = *this;
#pragma GCC ivdep
    for (int64_t x = 0; x < lanes; ++x) {
      T sum_a = 0, sum_b = 0;
#pragma GCC unroll 7
      for (int dx = -kReach; dx <= kReach; ++dx) {
        const T da = a[x] - a[x + dx], db = b[x] - b[x + dx];
        sum_a += from.own_a[x + dx] + (from.p[x + dx] * db - from.q[x + dx] * da);
        sum_b += from.own_b[x + dx] + (from.p[x + dx] * da - from.r[x + dx] * db);
      }
      change[x] = sum_a;
      events[x] = sum_b;
    }
  }
};

constexpr int64_t kBackwardRows = 12 * kRing + 16;

template <class T>
FLOWFUSE_INLINE void backward_rows(const Images<T>& images, const Gradients<T>& out, Scratch<T> scratch, int64_t first,
                                   int64_t last) {
  const int64_t height = images.height, width = images.width, channels = images.channels, plane = height * width;
  const Signals<T> signals = Signals<T>::template make<true>(scratch);
  const ColumnMoments<T> columns = ColumnMoments<T>::make(scratch);
  const WindowGradients<T> windows = WindowGradients<T>::make(scratch);
  const ColumnGradients<T> gather = ColumnGradients<T>::make(scratch);
  T *zeros = scratch.row(), *grad_s = scratch.row();
  T *change = scratch.row(), *events = scratch.row(), *lx = scratch.row(), *vertical = scratch.row();
  for_images(height, first, last, [&](int64_t b, int64_t begin, int64_t end) FLOWFUSE_INLINE_LAMBDA {
    int64_t taken = around(begin, height).begin;  // rows of windows before this one are made
    int64_t ready = around(taken, height).begin;  // and so are rows of signals
    const T* grad_image = out.grad + b * 6 * plane;
    const T* flow_image = images.flow == nullptr ? nullptr : images.flow + b * 2 * plane;
    for (int64_t y = begin; y < end; ++y) {
      for (; taken < around(y, height).end; ++taken) {
        for (; ready < around(taken, height).end; ++ready) signals.template load_row<true>(images, b, ready);
        const T* given = grad_image + 4 * plane + taken * width;
        for (int64_t x = 0; x < width; ++x) grad_s[x] = given[x];
        windows.load_row(signals, columns, grad_s, taken, height, width);
      }
      gather.compute(signals, windows, zeros, y, height, width);
      gather.gather(signals, y, width, change, events);

      const T* grad = grad_image + y * width;
      T* grad_events = out.events + b * plane + y * width;
#pragma GCC ivdep
      for (int64_t x = 0; x < width; ++x) {
        change[x] += grad[2 * plane + x];
        grad_events[x] = events[x] + grad[3 * plane + x];
        lx[x] = grad[x];
      }
      // Rows above and below in channels 1 and 5, and v; at the border the row itself counts, against its sign.
      const int64_t above = y > 0 ? -width : 0, below = y + 1 < height ? width : 0;
      const T sign_above = y > 0 ? T(1) : T(-1), sign_below = y + 1 < height ? T(1) : T(-1);
      const T *gy = grad + plane, *g5 = grad + 5 * plane;
      if (flow_image == nullptr) {
#pragma GCC ivdep
        for (int64_t x = 0; x < width; ++x) vertical[x] = sign_above * gy[x + above] - sign_below * gy[x + below];
      } else {
        const T *u = flow_image + y * width, *v = u + plane;
        const T* log = signals.log0.row(y);
        const T *up = signals.log0.row(y > 0 ? y - 1 : y), *down = signals.log0.row(y + 1 < height ? y + 1 : y);
        T *grad_u = out.flow + b * 2 * plane + y * width, *grad_v = grad_u + plane;
#pragma GCC ivdep
        for (int64_t x = 0; x < width; ++x) {
          lx[x] -= g5[x] * u[x];
          vertical[x] = sign_above * (gy[x + above] - g5[x + above] * v[x + above]) -
                        sign_below * (gy[x + below] - g5[x + below] * v[x + below]);
          grad_u[x] = -g5[x] * ((log[x + 1] - log[x - 1]) / 2);
          grad_v[x] = -g5[x] * ((down[x] - up[x]) / 2);
        }
      }
      lx[-1] = -lx[0];
      lx[width] = -lx[width - 1];
      const T *slope0 = signals.slope0.row(y), *slope1 = signals.slope1.row(y);
      for (int64_t c = 0; c < channels; ++c) {
        const T weight = luma_weight<T>(channels, c);
        T* grad_frame0 = out.frame0 + (b * channels + c) * plane + y * width;
        T* grad_frame1 = out.frame1 + (b * channels + c) * plane + y * width;
#pragma GCC ivdep
        for (int64_t x = 0; x < width; ++x) {
          grad_frame0[x] = ((lx[x - 1] - lx[x + 1] + vertical[x]) / 2 - change[x]) * slope0[x] * weight;
          grad_frame1[x] = change[x] * slope1[x] * weight;
        }
      }
    }
  });
}

// Calls work(scratch, first, last) for the rows of all images on several threads; each has scratch memory of its own.
template <class T, class Work>
void for_rows(const char* op, const Tensor& like, const Images<T>& images, int64_t scratch_rows, const Work& work) {
  const int64_t rows = images.batch * images.height;
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t parts = std::max<int64_t>(1, std::min(threads, rows / kGrain));
  const int64_t stride = scratch_stride(images.width);
  const Tensor scratch = allocate(op, like, {parts, scratch_rows, stride}, like.scalar_type());
  T* memory = mutable_data<T>(scratch);
  parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      work(Scratch<T>{memory + part * scratch_rows * stride, stride}, part * rows / parts, (part + 1) * rows / parts);
    }
  });
}

// Inputs in the dtype of sums; holds what Images points to.
template <class T>
struct Prepared {
  Tensor frame0, frame1, events, flow;
  Images<T> images;
};

template <class T>
Prepared<T> prepare(const Tensor& frame0, const Tensor& frame1, const Tensor& event_sum,
                    const std::optional<Tensor>& flow, bool linear) {
  const ScalarType dtype = sum_dtype(frame0.scalar_type());
  Prepared<T> storage{converted(frame0, dtype),
                      converted(frame1, dtype),
                      converted(event_sum, dtype),
                      flow.has_value() ? converted(*flow, dtype) : event_sum,
                      {}};
  storage.images = {data<T>(storage.frame0),
                    data<T>(storage.frame1),
                    data<T>(storage.events),
                    flow.has_value() ? data<T>(storage.flow) : nullptr,
                    frame0.size(0),
                    frame0.size(1),
                    frame0.size(2),
                    frame0.size(3),
                    linear};
  return storage;
}

template <class T>
Tensor forward(const Tensor& frame0, const Tensor& frame1, const Tensor& event_sum, const std::optional<Tensor>& flow,
               bool linear) {
  const char* op = "common_gradient";
  const Prepared<T> storage = prepare<T>(frame0, frame1, event_sum, flow, linear);
  const Tensor output =
      allocate(op, event_sum, {frame0.size(0), 6, frame0.size(2), frame0.size(3)}, event_sum.scalar_type());
  if (output.numel() == 0) return output;
  const Images<T>& images = storage.images;
  T* target = mutable_data<T>(output);
  for_rows(op, event_sum, images, kForwardRows, [&](const Scratch<T>& scratch, int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(forward_rows(images, target, scratch, first, last))
  });
  return output;
}

Tensor common_gradient(Tensor frame0, Tensor frame1, Tensor event_sum, std::optional<Tensor> flow, bool linear) {
  check_common_gradient("common_gradient", frame0, frame1, event_sum, flow);
  return frame0.scalar_type() == ScalarType::Double ? forward<double>(frame0, frame1, event_sum, flow, linear)
                                                    : forward<float>(frame0, frame1, event_sum, flow, linear);
}

using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
FourTensors backward(const Tensor& grad, const Tensor& frame0, const Tensor& frame1, const Tensor& event_sum,
                     const std::optional<Tensor>& flow, bool linear) {
  const char* op = "common_gradient_backward";
  const Prepared<T> storage = prepare<T>(frame0, frame1, event_sum, flow, linear);
  const Tensor g = torch::stable::contiguous(grad);
  const ScalarType dtype = event_sum.scalar_type();
  const Tensor grad_frame0 = allocate(op, frame0, shape_of(frame0), dtype);
  const Tensor grad_frame1 = allocate(op, frame1, shape_of(frame1), dtype);
  const Tensor grad_events = allocate(op, event_sum, shape_of(event_sum), dtype);
  const Tensor grad_flow = allocate(op, event_sum, flow.has_value() ? shape_of(*flow) : std::vector<int64_t>{0}, dtype);
  const Images<T>& images = storage.images;
  const Gradients<T> out{data<T>(g), mutable_data<T>(grad_frame0), mutable_data<T>(grad_frame1),
                         mutable_data<T>(grad_events), mutable_data<T>(grad_flow)};
  if (event_sum.numel() != 0) {
    for_rows(op, event_sum, images, kBackwardRows, [&](const Scratch<T>& scratch, int64_t first, int64_t last) {
      FLOWFUSE_VARIANTS(backward_rows(images, out, scratch, first, last))
    });
  }
  const ScalarType given = frame0.scalar_type();
  return {torch::stable::to(grad_frame0, given), torch::stable::to(grad_frame1, given), grad_events, grad_flow};
}

FourTensors common_gradient_backward(Tensor grad, Tensor frame0, Tensor frame1, Tensor event_sum,
                                     std::optional<Tensor> flow, bool linear) {
  check_common_gradient("common_gradient_backward", frame0, frame1, event_sum, flow);
  const ScalarType dtype = sum_dtype(frame0.scalar_type());
  check_gradient("common_gradient_backward", grad, {frame0.size(0), 6, frame0.size(2), frame0.size(3)}, dtype, "frame0",
                 frame0);
  return dtype == ScalarType::Double ? backward<double>(grad, frame0, frame1, event_sum, flow, linear)
                                     : backward<float>(grad, frame0, frame1, event_sum, flow, linear);
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("common_gradient", TORCH_BOX(&flowfuse::cpu::common_gradient));
  m.impl("common_gradient_backward", TORCH_BOX(&flowfuse::cpu::common_gradient_backward));
}
