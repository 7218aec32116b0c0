// Flow in C++: a network that `flowfuse-export --compile` wrote, run by libtorch without Python.
//
//     flow OPERATORS MODEL PAIR FLOW
//
// OPERATORS is flowfuse's library of operators, flowfuse/_C.abi3.so of an installed flowfuse. PAIR is a dict that
// torch.save wrote: x, y, t, p of the events (pixels, microseconds, above 0 = brighter; int32 or int64, as libtorch
// cannot read uint16), the numbers t0 and t1 (microseconds), frame0 and frame1 (uint8, [H, W], or [H, W, 3] for a
// network exported with --colour), and exposure0 and exposure1 (microseconds) where they are known. Frames or events
// may be missing. FLOW gets the flow from t0 to t1, [2, H, W] float32 in px, for torch.load.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "voxel_grids.h"

namespace {

using flowfuse::Event;
using flowfuse::require;
using flowfuse::Size;

// What PAIR holds, by name.
class Pair {
 public:
  explicit Pair(const std::string& path) : path_(path) {
    std::ifstream file(path, std::ios::binary);
    require(file.good(), path + ": cannot be read");
    const std::vector<char> content{std::istreambuf_iterator<char>(file), {}};
    const c10::IValue value = unpickle(content);
    require(value.isGenericDict(), path + ": expected a dict that torch.save wrote, got " + value.tagKind());
    for (const auto& entry : value.toGenericDict()) values_.emplace(entry.key().toStringRef(), entry.value());
  }

  bool has(const std::string& name) const { return values_.count(name) > 0; }

  at::Tensor tensor(const std::string& name, at::ScalarType type) const {
    const c10::IValue& value = find(name);
    require(value.isTensor(), path_ + ": " + name + " must be a tensor, got " + value.tagKind());
    return value.toTensor().to(type).contiguous();
  }

  int64_t integer(const std::string& name) const {
    const c10::IValue& value = find(name);
    require(value.isInt(), path_ + ": " + name + " must be an integer, got " + value.tagKind());
    return value.toInt();
  }

 private:
  c10::IValue unpickle(const std::vector<char>& content) const try {
    return torch::jit::pickle_load(content);
  } catch (const c10::Error& error) {
    throw std::invalid_argument(path_ + ": cannot be read: " + error.what_without_backtrace());
  }

  const c10::IValue& find(const std::string& name) const {
    require(has(name), path_ + ": " + name + " is missing");
    return values_.at(name);
  }

  std::string path_;
  std::map<std::string, c10::IValue> values_;
};

std::vector<Event> read_events(const Pair& pair) {
  if (!pair.has("t")) return {};
  const at::Tensor t = pair.tensor("t", at::kLong), x = pair.tensor("x", at::kInt), y = pair.tensor("y", at::kInt);
  const at::Tensor brighter = pair.tensor("p", at::kLong) > 0;
  for (const at::Tensor& values : {x, y, brighter}) {
    require(values.sizes() == t.sizes(), "x, y, t and p must have one length");
  }
  std::vector<Event> events(static_cast<std::size_t>(t.numel()));
  for (std::size_t i = 0; i < events.size(); ++i) {
    events[i] = {t.const_data_ptr<int64_t>()[i], x.const_data_ptr<int32_t>()[i], y.const_data_ptr<int32_t>()[i],
                 brighter.const_data_ptr<bool>()[i]};
  }
  return events;
}

// [1, channels, H, W] in [0, 1]; zeros where there is none.
at::Tensor read_frame(const Pair& pair, const std::string& name, Size size, int64_t channels) {
  if (!pair.has(name)) return at::zeros({1, channels, size.height, size.width});
  at::Tensor frame = pair.tensor(name, at::kByte);
  if (frame.dim() == 2) frame = frame.unsqueeze(2);
  require(frame.sizes() == at::IntArrayRef({size.height, size.width, channels}),
          name + " must have height, width and channels " + std::to_string(size.height) + ", " +
              std::to_string(size.width) + ", " + std::to_string(channels) + ", as the network was exported");
  return frame.permute({2, 0, 1}).to(at::kFloat).div(255).unsqueeze(0).contiguous();
}

at::Tensor as_tensor(const std::vector<float>& values, at::IntArrayRef shape) { return at::tensor(values).view(shape); }

// The inputs of the network, a batch of one, in the order that it takes them.
std::vector<at::Tensor> make_inputs(const Pair& pair, int64_t slices, int64_t bins, Size size, int64_t channels) {
  const int64_t t0 = pair.integer("t0"), t1 = pair.integer("t1");
  const int64_t exposure0 = pair.has("exposure0") ? pair.integer("exposure0") : 0;
  const int64_t exposure1 = pair.has("exposure1") ? pair.integer("exposure1") : 0;
  const std::vector<Event> events = read_events(pair);
  bool inside = false, before = false;
  for (const Event& event : events) {
    inside = inside || (event.t >= t0 && event.t < t1);
    before = before || event.t < t0;
  }
  const bool frame0 = pair.has("frame0"), frame1 = frame0 && pair.has("frame1");
  const auto share = [&](int64_t exposure) {
    return static_cast<float>(static_cast<double>(exposure) / static_cast<double>(t1 - t0));
  };
  const auto flag = [](bool value) { return value ? 1.0F : 0.0F; };
  const auto [height, width] = size;
  return {
      as_tensor(flowfuse::voxel_grids(events, t0, t1, slices, bins, size), {1, slices + 1, bins, height, width}),
      read_frame(pair, "frame0", size, channels),
      read_frame(pair, "frame1", size, channels),
      as_tensor(flowfuse::event_sum(events, t0, t1, exposure0, exposure1, size), {1, 1, height, width}),
      as_tensor({share(exposure0), share(exposure1)}, {1, 2}),
      as_tensor({flag(frame0), flag(inside), flag(inside && before), flag(frame1)}, {1, 4}),
  };
}

void run(const std::string& operators, const std::string& model, const std::string& pair, const std::string& flow) {
  // The operators register themselves. They stay loaded: the network calls them.
  if (dlopen(operators.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    throw std::runtime_error("operators: " + std::string(dlerror()));
  }
  require(std::ifstream(model).good(), model + ": cannot be read");
  torch::inductor::AOTIModelPackageLoader loader(model);
  const auto facts = loader.get_metadata();
  const auto number = [&](const std::string& name) {
    const auto found = facts.find("flowfuse_" + name);
    require(found != facts.end(),
            model + ": not written by flowfuse-export --compile, flowfuse_" + name + " is missing");
    return std::stoll(found->second);
  };
  require(number("batch") == 1, model + ": expected a batch of 1, got " + std::to_string(number("batch")));
  const Size size{number("height"), number("width")};
  const c10::InferenceMode no_gradients;
  const std::vector<at::Tensor> outputs =
      loader.run(make_inputs(Pair(pair), number("slices"), number("bins"), size, number("channels")));
  // The first output are the control points, [1, n, 2, H, W]: the last one is the flow to t1.
  const std::vector<char> content = torch::jit::pickle_save(outputs.at(0).select(0, 0).select(0, -1).clone());
  std::ofstream file(flow, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  require(file.good(), flow + ": cannot be written");
  std::cout << flow << ": " << size.width << " x " << size.height << " px\n";
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) {
    std::cerr << "usage: flow OPERATORS MODEL PAIR FLOW\n";
    return 2;
  }
  try {
    run(arguments[1], arguments[2], arguments[3], arguments[4]);
  } catch (const c10::Error& error) {
    std::cerr << "flow: " << error.what_without_backtrace() << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "flow: " << error.what() << "\n";
    return 1;
  }
}
