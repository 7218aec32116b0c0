// Runs CUDA device code on one CPU thread, and stops at faults that a GPU would let pass.
//
// The threads of a block are fibers; each runs until it waits at a barrier. FLOWFUSE_EMULATOR_ORDER says in which
// order blocks and threads run: forward, reverse, or shuffle:N with a seed. Found, with the place named:
//   - a barrier that some threads of the block (or lanes of the mask) do not reach, or reach at another line;
//   - grids, blocks and shared memory beyond the limits of a device;
//   - asynchronous copies that are not waited for, or whose target is used meanwhile;
//   - shared memory read before it was written (it is also filled with NaN), or beyond the size of the launch
//     (AddressSanitizer builds);
//   - in builds with -fsanitize=thread, whose calls come here instead of to ThreadSanitizer: two threads that
//     touch the same bytes of shared or global memory without a barrier between them, one of them writing.
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/launch.cuh"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace flowfuse::cuda {

alignas(4096) unsigned char shared_arena[256 * 1024];  // whole pages of the record below

DeviceCall::DeviceCall(const char* op, const Tensor&) : op_(op), stream_(nullptr) {}
void DeviceCall::check(cudaError_t) const {}

}  // namespace flowfuse::cuda

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr size_t kStack = 256 * 1024;
constexpr size_t kSharedDefault = 48 * 1024, kSharedMost = 227 * 1024;

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Place {
  void* registers[5];  // as __builtin_setjmp wants it
};

struct Fiber {
  ucontext_t context;
  Place place;
  bool entered = false;
  uint3 thread;
  Barrier waits = Barrier::kNone;
  unsigned mask = 0;
  const char* file = "";
  int line = 0;
  bool started = false, done = true;
  uint32_t warp_epoch = 0;
  std::vector<Copy> copies;  // started, not waited for
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
};

std::mutex one_launch;
// Kernels of this thread are being run. Asked at every access: no call must find it.
__attribute__((tls_model("initial-exec"))) thread_local bool running = false;
std::map<const void*, int> shared_allowed;
Fiber* fibers = nullptr;
unsigned char* stacks = nullptr;
Place scheduler_place;
unsigned current = 0;  // fiber that runs
uint32_t block_number = 0, block_epoch = 0;
size_t shared_size = 0;
const std::function<void()>* body = nullptr;
uint64_t slots[kMaxThreads];

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_bottom = nullptr;
size_t scheduler_size = 0;
void* scheduler_fake = nullptr;
#endif

uint3 unflatten(uint64_t index, const dim3& size) {
  return {static_cast<unsigned>(index % size.x), static_cast<unsigned>(index / size.x % size.y),
          static_cast<unsigned>(index / size.x / size.y)};
}

// ---- order of blocks and threads ----

struct Order {
  enum { kForward, kReverse, kShuffle } kind = kForward;
  std::mt19937 random{0};

  Order() {
    const char* text = std::getenv("FLOWFUSE_EMULATOR_ORDER");
    const std::string name = text == nullptr ? "forward" : text;
    if (name == "reverse") {
      kind = kReverse;
    } else if (name.rfind("shuffle:", 0) == 0) {
      kind = kShuffle;
      random.seed(static_cast<unsigned>(std::stoul(name.substr(8))));
    } else if (name != "forward") {
      fault("FLOWFUSE_EMULATOR_ORDER must be forward, reverse or shuffle:N, got %s", name.c_str());
    }
  }

  void apply(std::vector<uint32_t>& list) {
    for (uint32_t i = 0; i < list.size(); ++i) list[i] = i;
    if (kind == kReverse) std::reverse(list.begin(), list.end());
    if (kind == kShuffle) std::shuffle(list.begin(), list.end(), random);
  }
};

// ---- record of accesses ----

struct Access {
  uint32_t block = 0, epoch = 0, warp_epoch = 0;
  uint16_t thread = 0;
  uint8_t kind = 0;  // 0 none, 1 plain, 2 atomic
  // Whether others did the same before, unordered with this access: lanes of the warp, warps, blocks.
  bool lanes = false, warps = false, blocks = false;
};

struct Cell {
  Access write, read;
};

constexpr uintptr_t kCellBytes = 2, kPageBytes = 4096;

struct Page {
  uint64_t stamp = 0;  // launch, or block for shared memory: what is older is forgotten
  Cell cells[kPageBytes / kCellBytes];
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uint64_t launch_stamp = 0, block_stamp = 0;

bool in(const void* address, const void* begin, size_t size) {
  return static_cast<const char*>(address) >= static_cast<const char*>(begin) &&
         static_cast<const char*>(address) < static_cast<const char*>(begin) + size;
}

// Whether a barrier, or the order of one thread's program, lies between the access and now.
bool ordered(const Access& before) {
  if (before.blocks || before.block != block_number) return false;
  if (before.epoch != block_epoch) return true;
  if (before.warps || before.thread / kWarpSize != current / kWarpSize) return false;
  if (before.warp_epoch != fibers[current].warp_epoch) return true;
  return !before.lanes && before.thread == current;
}

void record(Access& access, bool atomic) {
  const uint32_t warp_epoch = fibers[current].warp_epoch;
  const bool known = access.kind != 0;
  access.blocks = known && (access.blocks || access.block != block_number);
  const bool together = known && access.block == block_number && access.epoch == block_epoch;
  access.warps = together && (access.warps || access.thread / kWarpSize != current / kWarpSize);
  access.lanes = together && access.warp_epoch == warp_epoch && (access.lanes || access.thread != current);
  access.block = block_number;
  access.epoch = block_epoch;
  access.warp_epoch = warp_epoch;
  access.thread = static_cast<uint16_t>(current);
  access.kind = atomic ? 2 : 1;
}

void conflict(const Access& before, const char* what, bool shared, const void* address) {
  fault("conflict: this thread %s %s memory at %p that thread %u of block %u touched with no barrier between", what,
        shared ? "shared" : "global", address, before.thread, before.block);
}

void access(const void* address, size_t bytes, bool write, bool atomic) {
  if (!running || in(address, stacks, kStack * kMaxThreads)) return;
  const bool shared = in(address, flowfuse::cuda::shared_arena, sizeof flowfuse::cuda::shared_arena);
  if (shared && !in(static_cast<const char*>(address) + bytes - 1, flowfuse::cuda::shared_arena, shared_size)) {
    fault("touches shared memory beyond the %zu bytes of this launch", shared_size);
  }
  const uint64_t stamp = shared ? block_stamp : launch_stamp;
  const uintptr_t first = reinterpret_cast<uintptr_t>(address) / kCellBytes;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(address) + bytes - 1) / kCellBytes;
  static uintptr_t known_number = ~uintptr_t{0};
  static Page* known = nullptr;
  for (uintptr_t cell_number = first; cell_number <= last; ++cell_number) {
    const uintptr_t number = cell_number * kCellBytes / kPageBytes;
    if (number != known_number) {
      std::unique_ptr<Page>& page = pages[number];
      if (page == nullptr) page = std::make_unique<Page>();
      known = page.get();
      known_number = number;
    }
    if (known->stamp != stamp) {
      std::fill(std::begin(known->cells), std::end(known->cells), Cell{});
      known->stamp = stamp;
    }
    Cell& cell = known->cells[cell_number % (kPageBytes / kCellBytes)];
    if (shared && !write && cell.write.kind == 0) fault("reads shared memory that no thread has written");
    const bool both_atomic = atomic && cell.write.kind == 2;
    if (cell.write.kind != 0 && !both_atomic && !ordered(cell.write)) {
      conflict(cell.write, write ? "writes" : "reads", shared, address);
    }
    if (write && cell.read.kind != 0 && !(atomic && cell.read.kind == 2) && !ordered(cell.read)) {
      conflict(cell.read, "writes", shared, address);
    }
    record(write ? cell.write : cell.read, atomic);
  }
}

// ---- fibers ----

// setcontext enters a fiber's stack once; later switches are jumps, which make no system call. The jumps are the
// compiler's: AddressSanitizer's longjmp and swapcontext would forget the poison of a whole stack, each time.
#if defined(__SANITIZE_ADDRESS__)
#define UNSEEN __attribute__((noinline, no_sanitize("address", "undefined")))
#else
#define UNSEEN __attribute__((noinline))
#endif

UNSEEN void jump(Place& place) { __builtin_longjmp(place.registers, 1); }  // not where the place is set

UNSEEN void enter_fiber(Fiber& fiber) {
  if (__builtin_setjmp(scheduler_place.registers) != 0) return;
  if (fiber.entered) jump(fiber.place);
  fiber.entered = true;
  setcontext(&fiber.context);
}

UNSEEN void leave_fiber(Fiber& fiber) {
  if (__builtin_setjmp(fiber.place.registers) == 0) jump(scheduler_place);
}

void enter(unsigned index) {
  current = index;
  threadIdx = fibers[index].thread;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake, stacks + kStack * index, kStack);
#endif
  enter_fiber(fibers[index]);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
}

void leave(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fiber.fake_stack, scheduler_bottom, scheduler_size);
#endif
  leave_fiber(fiber);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_bottom, &scheduler_size);
#endif
}

// A fiber outlives its thread: it waits for the next block's thread of the same index.
void fiber_main(unsigned index) {
  Fiber& fiber = fibers[index];
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
  while (true) {
    (*body)();
    if (!fiber.copies.empty()) fault("this thread ends while copies that it started are under way");
    fiber.done = true;
    leave(fiber);
  }
}

void prepare_fibers() {
  if (fibers != nullptr) return;
  fibers = new Fiber[kMaxThreads];
  void* memory =
      mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fault("no memory for the stacks of %u threads", kMaxThreads);
  stacks = static_cast<unsigned char*>(memory);
}

void start_fiber(unsigned index) {
  Fiber& fiber = fibers[index];
  if (fiber.started) return;
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stacks + kStack * index;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, reinterpret_cast<void (*)()>(fiber_main), 1, index);
}

void prepare_shared(size_t bytes) {
  shared_size = bytes;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(flowfuse::cuda::shared_arena, sizeof flowfuse::cuda::shared_arena);
#endif
  std::memset(flowfuse::cuda::shared_arena, 0xff, bytes);  // NaN in every floating type
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(flowfuse::cuda::shared_arena + bytes, sizeof flowfuse::cuda::shared_arena - bytes);
#endif
}

// ---- barriers ----

[[noreturn]] void divergent(unsigned index, const char* why) {
  current = index;
  threadIdx = fibers[index].thread;
  fault("%s:%d: divergent barrier: %s", fibers[index].file, fibers[index].line, why);
}

bool same_site(const Fiber& a, const Fiber& b) {
  return a.waits == b.waits && a.line == b.line && std::strcmp(a.file, b.file) == 0;
}

// Lets the lanes go on whose whole mask has arrived; says whether there were any.
bool release_warps(unsigned threads) {
  bool any = false;
  for (unsigned index = 0; index < threads; ++index) {
    Fiber& fiber = fibers[index];
    if (fiber.waits != Barrier::kWarp) continue;
    const unsigned first = index / kWarpSize * kWarpSize;
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if (!(fiber.mask >> lane & 1)) continue;
      if (first + lane >= threads) divergent(index, "the mask names lanes that the block does not have");
      if (fibers[first + lane].done) divergent(index, "a lane of the mask has returned");
      if (!same_site(fiber, fibers[first + lane]) || fibers[first + lane].mask != fiber.mask) {
        divergent(index, "a lane of the mask waits somewhere else");
      }
    }
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if (!(fiber.mask >> lane & 1) || first + lane == index) continue;
      fibers[first + lane].waits = Barrier::kNone;
      ++fibers[first + lane].warp_epoch;
    }
    fiber.waits = Barrier::kNone;
    ++fiber.warp_epoch;
    any = true;
  }
  return any;
}

void release_block(unsigned threads) {
  for (unsigned index = 0; index < threads; ++index) {
    if (fibers[index].done) {
      for (unsigned other = 0; other < threads; ++other) {
        if (!fibers[other].done) divergent(other, "another thread of the block has returned");
      }
    }
    if (!same_site(fibers[index], fibers[0])) divergent(index, "another thread of the block waits somewhere else");
  }
  for (unsigned index = 0; index < threads; ++index) fibers[index].waits = Barrier::kNone;
  ++block_epoch;
}

void run_block(unsigned threads, std::vector<uint32_t>& list, Order& order) {
  for (unsigned index = 0; index < threads; ++index) {
    fibers[index].done = false;
    fibers[index].waits = Barrier::kNone;
    fibers[index].thread = unflatten(index, blockDim);
  }
  unsigned left = threads;
  while (true) {
    order.apply(list);
    bool all_wait_for_block = true;
    for (const unsigned index : list) {
      Fiber& fiber = fibers[index];
      if (fiber.done || fiber.waits != Barrier::kNone) continue;
      start_fiber(index);
      enter(index);
      if (fiber.done) --left;
    }
    if (left == 0) return;
    for (unsigned index = 0; index < threads; ++index) {
      if (!fibers[index].done && fibers[index].waits == Barrier::kWarp) all_wait_for_block = false;
    }
    if (all_wait_for_block) {
      release_block(threads);
    } else {
      release_warps(threads);
    }
  }
}

}  // namespace

void fault(const char* format, ...) {
  running = false;
  std::fprintf(stderr, "flowfuse emulator: block (%u, %u, %u) thread (%u, %u, %u): ", blockIdx.x, blockIdx.y,
               blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n");
  std::fflush(stderr);
  std::abort();
}

unsigned lane() { return current % kWarpSize; }
uint64_t& lane_slot(unsigned lane) { return slots[current / kWarpSize * kWarpSize + lane]; }
void allow_shared(const void* function, int bytes) { shared_allowed[function] = bytes; }
void atomic_access(const void* address, size_t bytes) { access(address, bytes, true, true); }

void copy_later(void* shared, const void* global, size_t bytes) {
  for (const void* address : {static_cast<const void*>(shared), global}) {
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fault("a copy of %zu misaligned bytes", bytes);
  }
  access(shared, bytes, true, false);
  std::memset(shared, 0xff, bytes);
  fibers[current].copies.push_back({shared, global, bytes});
}

void finish_copies() {
  for (const Copy& copy : fibers[current].copies) {
    access(copy.from, copy.bytes, false, false);
    access(copy.to, copy.bytes, true, false);
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
  fibers[current].copies.clear();
}

void wait(Barrier barrier, unsigned mask, const char* file, int line) {
  Fiber& fiber = fibers[current];
  fiber.waits = barrier;
  fiber.mask = mask;
  fiber.file = file;
  fiber.line = line;
  leave(fiber);
}

void run(dim3 grid, dim3 block, size_t shared_bytes, const void* function, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  threadIdx = blockIdx = {0, 0, 0};
  blockDim = block;
  gridDim = grid;
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    fault("a grid of (%u, %u, %u) blocks; the limit is (2147483647, 65535, 65535)", grid.x, grid.y, grid.z);
  }
  if (threads == 0 || threads > kMaxThreads || block.z > 64) {
    fault("a block of (%u, %u, %u) threads; the limit is 1024 in all", block.x, block.y, block.z);
  }
  const auto allowed = shared_allowed.find(function);
  const size_t limit =
      allowed == shared_allowed.end() ? kSharedDefault : std::max<size_t>(kSharedDefault, allowed->second);
  if (shared_bytes > limit || limit > kSharedMost) {
    fault("%zu bytes of shared memory; %zu were asked for with cudaFuncSetAttribute and %zu are the most", shared_bytes,
          limit, kSharedMost);
  }
  static Order order;
  prepare_fibers();
  body = &kernel;
  ++launch_stamp;
  std::vector<uint32_t> thread_list(threads), block_list(blocks);
  order.apply(block_list);
  running = true;
  for (const uint32_t index : block_list) {
    blockIdx = unflatten(index, grid);
    block_number = index;
    block_epoch = 0;
    ++block_stamp;
    prepare_shared(shared_bytes);
    for (unsigned thread = 0; thread < threads; ++thread) fibers[thread].warp_epoch = 0;
    run_block(static_cast<unsigned>(threads), thread_list, order);
  }
  running = false;
}

}  // namespace emulator

// What -fsanitize=thread makes of every memory access.
#define ACCESSES(bytes)                                                                                \
  void __tsan_read##bytes(void* address) { emulator::access(address, bytes, false, false); }           \
  void __tsan_write##bytes(void* address) { emulator::access(address, bytes, true, false); }           \
  void __tsan_unaligned_read##bytes(void* address) { emulator::access(address, bytes, false, false); } \
  void __tsan_unaligned_write##bytes(void* address) { emulator::access(address, bytes, true, false); } \
  void __tsan_volatile_read##bytes(void* address) { emulator::access(address, bytes, false, false); }  \
  void __tsan_volatile_write##bytes(void* address) { emulator::access(address, bytes, true, false); }

extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* address, size_t bytes) { emulator::access(address, bytes, false, false); }
void __tsan_write_range(void* address, size_t bytes) { emulator::access(address, bytes, true, false); }
// Atomics of the C++ library, in the launchers: the counts of shared_ptr and the guards of local statics.
#define ATOMICS(bits)                                                                                      \
  uint##bits##_t __tsan_atomic##bits##_fetch_add(volatile uint##bits##_t* at, uint##bits##_t value, int) { \
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);                                                \
  }                                                                                                        \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* at, int) {                      \
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                                          \
  }
ATOMICS(8)
ATOMICS(32)
ATOMICS(64)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
