// fit_trajectories for every device: its check.
#pragma once

#include <cstdint>
#include <optional>

#include "checks.h"
#include "portable.h"

namespace flowfuse {

constexpr int64_t kMostControlPoints = 16;

inline void check_fit_trajectories(const char* op, const Tensor& matches, const std::optional<Tensor>& scores,
                                   const Tensor& basis, const Tensor& stiffness, const Tensor& log_trust,
                                   const Tensor& log_stiffness) {
  check_shape(op, "matches", matches, "[B, P, 3, h, w] with P >= 1",
              matches.dim() == 5 && matches.size(1) >= 1 && matches.size(2) == 3);
  check_dtype(op, "matches", matches, kCoordinateDtypes);
  const auto check_exact = [&](const char* name, const Tensor& tensor) {
    check_dtype(op, name, tensor, {matches.scalar_type()});
    check_device(op, name, tensor, "matches", matches);
  };
  if (scores.has_value()) {
    check_shape(op, "scores", *scores, {matches.size(0), matches.size(1), 1, matches.size(3), matches.size(4)});
    check_exact("scores", *scores);
  }
  check_shape(op, "basis", basis, "[P, n] with the P of matches and n in [1, 16]",
              basis.dim() == 2 && basis.size(0) == matches.size(1) && basis.size(1) >= 1 &&
                  basis.size(1) <= kMostControlPoints);
  check_exact("basis", basis);
  check_shape(op, "stiffness", stiffness, {basis.size(1), basis.size(1)});
  check_exact("stiffness", stiffness);
  check_shape(op, "log_trust", log_trust, "[]", log_trust.dim() == 0);
  check_exact("log_trust", log_trust);
  check_shape(op, "log_stiffness", log_stiffness, "[]", log_stiffness.dim() == 0);
  check_exact("log_stiffness", log_stiffness);
}

// Shapes: matches [B, P, 3, h w], scores [B, P, h w] or null, change [B, n, 2, h w].
template <class T>
struct TrajectoryFit {
  const T* matches;
  const T* scores;
  const T* basis;
  const T* stiffness;
  const T* log_trust;
  const T* log_stiffness;
  T* change;
  int64_t batch, pairs, degree, plane;

  FLOWFUSE_INLINE const T* match(int64_t b, int64_t p, int64_t part) const {
    return matches + ((b * pairs + p) * 3 + part) * plane;
  }
};

}  // namespace flowfuse
