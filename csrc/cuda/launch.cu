#include "cuda/launch.cuh"

#include <dlfcn.h>

#include <string>

namespace flowfuse::cuda {
namespace {

using GetStream = int32_t (*)(int32_t device, void** stream);

// torch's current stream. The function lives in torch's CUDA library: naming it at link time would keep this
// library from loading beside a CPU build of torch, and other ways to it exist from torch 2.13 only.
cudaStream_t current_stream(const char* op, int32_t device) {
  static const GetStream get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    return reinterpret_cast<GetStream>(library == nullptr ? nullptr
                                                          : dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(get_stream != nullptr, op, ": this build of torch has no CUDA library (libtorch_cuda.so)");
  void* stream = nullptr;
  STD_TORCH_CHECK(get_stream(device, &stream) == 0, op, ": torch gave no current stream for cuda:", device);
  return static_cast<cudaStream_t>(stream);
}

}  // namespace

DeviceCall::DeviceCall(const char* op, const Tensor& tensor)
    : op_(op),
      stream_(current_stream(op, tensor.get_device_index())),
      guard_(std::make_shared<torch::stable::accelerator::DeviceGuard>(tensor.get_device_index())) {}

void DeviceCall::check(cudaError_t error) const {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next operator would be blamed
  STD_TORCH_CHECK(error != cudaErrorNoKernelImageForDevice && error != cudaErrorUnsupportedPtxVersion, op_,
                  ": flowfuse has no kernels for this GPU: it was built for " C10_STRINGIZE(FLOWFUSE_CUDA_ARCHITECTURES)
                  "; rebuild it with FLOWFUSE_CUDA_ARCHITECTURES=sm_<compute capability without its dot>");
  STD_TORCH_CHECK(error != cudaErrorInsufficientDriver, op_, ": the NVIDIA driver is too old for CUDA ",
                  CUDART_VERSION / 1000, ".", CUDART_VERSION / 10 % 100,
                  ", which flowfuse was built with; update it, build with an older nvcc, or use device \"cpu\"");
  STD_TORCH_CHECK(false, op_, ": CUDA error: ", cudaGetErrorString(error));
}

}  // namespace flowfuse::cuda
