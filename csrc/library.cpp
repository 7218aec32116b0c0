// The only list of operators. Gradients, fake kernels and autocast are registered in flowfuse/ops.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/macros/Macros.h>

#include <string>

#include "cpu/dispatch.h"

namespace flowfuse {
namespace {

// Lines of key=value, taken apart by flowfuse.ops.build_info.
std::string build_info() {
  constexpr uint64_t target = TORCH_TARGET_VERSION;
  std::string text =
      "torch_target=" + std::to_string(target >> 56) + "." + std::to_string((target >> 48) & 0xff) + "\n";
#if defined(__clang__)
  text += "compiler=clang " __clang_version__ "\n";
#else
  text += "compiler=gcc " __VERSION__ "\n";
#endif
  text += "cpp_standard=" C10_STRINGIZE(__cplusplus) "\n";
  text += "cpu_capability=" + cpu::cpu_capability_name() + "\n";
  text += "cpu_capabilities=" + cpu::cpu_capabilities_compiled() + "\n";
#if defined(FLOWFUSE_CUDA_VERSION)
  text += "cuda=" C10_STRINGIZE(FLOWFUSE_CUDA_VERSION) "\n";
  text += "cuda_architectures=" C10_STRINGIZE(FLOWFUSE_CUDA_ARCHITECTURES) "\n";
#endif
  return text;
}

}  // namespace
}  // namespace flowfuse

STABLE_TORCH_LIBRARY(flowfuse, m) {
  m.def("build_info() -> str");

  m.def(
      "voxelize(Tensor x, Tensor y, Tensor t, Tensor p, Tensor offsets, Tensor t0, Tensor t1, "
      "SymInt bins, SymInt height, SymInt width) -> (Tensor, Tensor)");

  m.def("correlation_volume(Tensor f0, Tensor[] f1_levels) -> Tensor[]");
  m.def("correlation_volume_backward(Tensor[] grads, Tensor f0, Tensor[] f1_levels) -> (Tensor, Tensor[])");
  m.def("volume_lookup(Tensor[] volumes, Tensor coords, int radius) -> Tensor");
  m.def(
      "volume_lookup_backward(Tensor grad, Tensor[] volumes, Tensor coords, int radius, bool coords_needed) "
      "-> (Tensor[], Tensor)");
  m.def("correlation_lookup(Tensor f0, Tensor[] f1_levels, Tensor coords, int radius, bool exact) -> Tensor");
  m.def(
      "correlation_lookup_backward(Tensor grad, Tensor f0, Tensor[] f1_levels, Tensor coords, int radius, "
      "bool coords_needed, bool exact) -> (Tensor, Tensor[], Tensor)");

  m.def("common_gradient(Tensor frame0, Tensor frame1, Tensor event_sum, Tensor? flow, bool linear) -> Tensor");
  m.def(
      "common_gradient_backward(Tensor grad, Tensor frame0, Tensor frame1, Tensor event_sum, Tensor? flow, "
      "bool linear) -> (Tensor, Tensor, Tensor, Tensor)");

  m.def("convex_upsample(Tensor field, Tensor mask, int factor) -> Tensor");
  m.def("convex_upsample_backward(Tensor grad, Tensor field, Tensor mask, int factor) -> (Tensor, Tensor)");

  m.def("propagation_weights(Tensor query_key, Tensor boundary, Tensor strength) -> Tensor");
  m.def(
      "propagation_weights_backward(Tensor grad, Tensor query_key, Tensor boundary, Tensor strength, "
      "Tensor weights) -> (Tensor, Tensor, Tensor)");
  m.def("propagate(Tensor values, Tensor weights) -> Tensor");
  m.def("propagate_backward(Tensor grad, Tensor values, Tensor weights) -> (Tensor, Tensor)");

  // Of inference alone: flowfuse/ops trains through their references, or their parts.
  m.def(
      "read_windows(Tensor windows, Tensor? fade, Tensor? gate, Tensor offsets, Tensor log_sharpness, Tensor? weight, "
      "Tensor? bias) -> (Tensor, Tensor)");
  m.def(
      "read_volume(Tensor[] volumes, Tensor coords, int radius, Tensor? fade, Tensor? gate, Tensor offsets, "
      "Tensor log_sharpness, Tensor? weight, Tensor? bias) -> (Tensor, Tensor)");
  m.def(
      "read_correlation(Tensor f0, Tensor[] f1_levels, Tensor coords, int radius, bool exact, Tensor? fade, "
      "Tensor? gate, Tensor offsets, Tensor log_sharpness, Tensor? weight, Tensor? bias) -> (Tensor, Tensor)");
  m.def(
      "fit_trajectories(Tensor matches, Tensor? scores, Tensor basis, Tensor stiffness, Tensor log_trust, "
      "Tensor log_stiffness) -> Tensor");
  m.def("group_norm_activate(Tensor values, Tensor? residual, Tensor weight, Tensor bias, int groups) -> Tensor");
  m.def("lucas_kanade_step(Tensor frame0, Tensor frame1, Tensor flow, Tensor prior) -> Tensor");

  m.def(
      "warp_events(Tensor x, Tensor y, Tensor t, Tensor p, Tensor offsets, Tensor trajectory, Tensor t0, "
      "Tensor t1, Tensor t_ref, str mode, SymInt height, SymInt width) -> Tensor");
  m.def(
      "warp_events_backward(Tensor grad, Tensor x, Tensor y, Tensor t, Tensor p, Tensor offsets, "
      "Tensor trajectory, Tensor t0, Tensor t1, Tensor t_ref, str mode, SymInt height, SymInt width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&flowfuse::build_info));
}
