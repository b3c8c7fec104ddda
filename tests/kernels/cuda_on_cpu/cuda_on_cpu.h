// Runs a CUDA C++ kernel on a CPU, unmodified, with every thread of every block alive at once.
//
// Each CUDA thread is a fiber. They run one at a time, a fiber until it has to wait, so an execution is repeatable. What
// there is to make wrong programs fail:
//   schedule   seed 0: fair. Other seeds: warps have random ranks, the highest that can go on does, and ranks change now
//              and then, so one warp may be many barriers ahead of another where nothing keeps it back
//   messages   what a block sends into another's shared memory is on its way for a random while, in a random order
//   poison     shared memory begins as NaN
//   deadlock   nobody can go on and nothing is on its way: an error that counts who waits for what
//   lifetime   a message to a block that has ended, or to an mbarrier that is not there yet, is an error
//   removal    a barrier or wait can be taken out by its line in the kernel's source, to see that something else fails
// What it cannot show: missing fences (memory is sequentially consistent here), too much shared memory or too many
// registers, blocks that do not fit the GPU together, and the last digit of approximate instructions.
#pragma once
#define RNNPAR_ON_CPU

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define FIBERS_NEED_ASAN 1
#endif

using std::max;
using std::min;

// --- the words of CUDA C++ ---

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __cluster_dims__(...)
struct float4 { float x, y, z, w; } __attribute__((aligned(16)));
struct uint4 { unsigned x, y, z, w; } __attribute__((aligned(16)));
struct uint2 { unsigned x, y; } __attribute__((aligned(8)));
struct dim3 { unsigned x = 1, y = 1, z = 1; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace executor {

[[noreturn]] inline void fail(const std::string& why) {
  printf("executor: %s\n", why.c_str());
  fflush(stdout);
  _exit(3);
}

// --- who runs, and who waits for what ---

struct Barrier {
  unsigned members = 0, came = 0, round = 0;
};

struct MBarrier {  // phase: 0, 1, 0, ...
  unsigned phase = 0, arrivals = 0, pending = 0;
  long bytes = 0;  // announced and not yet come; below 0 when they came first
  void check() {
    if (pending == 0 && bytes == 0) pending = arrivals, phase ^= 1;
  }
};

struct Lane {  // what a lane of a warp offers to the others
  uint64_t value;
  uint4 a;
  unsigned b0, b1;
};

struct Block {
  Barrier barrier;
  std::vector<Barrier> warps;
  std::vector<std::array<Lane, 32>> lanes;
  char* dynamic = nullptr;
  size_t size = 0;
  std::map<int, std::vector<char>> named;  // __shared__ arrays
  std::map<const void*, MBarrier> mbarriers;
  unsigned alive = 0;
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index, block_index;
  unsigned block, warp, lane;
  bool done = false;
  const unsigned* word = nullptr;  // waits until *word is no longer `value`
  unsigned value = 0;
  const char* what = "";
};

struct Message {
  char* to;
  const void* barrier;
  unsigned words[4], block;
};

inline Thread* current = nullptr;
inline ucontext_t scheduler;
inline std::vector<Block> blocks;
inline std::vector<Barrier> clusters;
inline std::vector<Message> under_way;
inline dim3 grid, block;
inline unsigned cluster_size = 1;
inline std::function<void()> kernel;
inline std::set<int> removed;     // lines whose barrier or wait is left out
inline std::map<int, long> used;  // lines whose barrier or wait was come to, and how often
inline std::string source;        // the kernel's file, which the lines are of

#ifdef FIBERS_NEED_ASAN
inline void* scheduler_fake = nullptr;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_size = 0;
const size_t STACK = 512 * 1024;
#else
const size_t STACK = 128 * 1024;
#endif

inline void back_to_scheduler() {
#ifdef FIBERS_NEED_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(current->done ? nullptr : &fake, scheduler_stack, scheduler_size);
#endif
  swapcontext(&current->context, &scheduler);
#ifdef FIBERS_NEED_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void wait_until_not(const unsigned* word, unsigned value, const char* what) {
  while (*word == value) {
    current->word = word, current->value = value, current->what = what;
    back_to_scheduler();
  }
  current->word = nullptr;
}

inline bool left_out(int line, const char* file) {
  const char* name = strrchr(file, '/');
  if (source != (name ? name + 1 : file)) return false;
  used[line]++;
  return removed.count(line) > 0;
}

inline void meet(Barrier& barrier, const char* what) {
  unsigned round = barrier.round;
  if (++barrier.came >= barrier.members) {
    barrier.came = 0;
    barrier.round++;
  } else {
    wait_until_not(&barrier.round, round, what);
  }
}

inline Block& here() { return blocks[current->block]; }
inline Barrier& my_warp() { return here().warps[current->warp]; }
inline std::array<Lane, 32>& my_lanes() { return here().lanes[current->warp]; }

inline void entry() {
#ifdef FIBERS_NEED_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  kernel();
  current->done = true;
  here().alive--;
  back_to_scheduler();
}

inline MBarrier& mbarrier(unsigned block, const void* at) {
  auto found = blocks[block].mbarriers.find(at);
  if (found == blocks[block].mbarriers.end()) fail("an mbarrier is used before mbarrier_init");
  return found->second;
}

inline void deliver(size_t which) {
  Message message = under_way[which];
  under_way.erase(under_way.begin() + which);
  if (blocks[message.block].alive == 0) fail("a message to the shared memory of a block that has ended");
  MBarrier& barrier = mbarrier(message.block, message.barrier);
  memcpy(message.to, message.words, 16);
  barrier.bytes -= 16;
  barrier.check();
}

inline unsigned block_of(const char* address) {
  for (unsigned i = 0; i < blocks.size(); i++)
    if (address >= blocks[i].dynamic && address < blocks[i].dynamic + blocks[i].size) return i;
  fail("an address that is in no block's dynamic shared memory");
}

inline void go_on(Thread& thread) {
  current = &thread;
#ifdef FIBERS_NEED_ASAN
  __sanitizer_start_switch_fiber(&scheduler_fake, thread.stack.get(), STACK);
#endif
  swapcontext(&scheduler, &thread.context);
#ifdef FIBERS_NEED_ASAN
  __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
}

inline void deadlock(const std::vector<std::unique_ptr<Thread>>& threads) {
  std::map<std::string, int> waiting;
  for (auto& thread : threads)
    if (!thread->done) waiting[thread->what]++;
  std::string why = "deadlock:";
  for (auto& [what, count] : waiting) why += " " + std::to_string(count) + " threads wait at " + what + ";";
  fail(why);
}

inline void launch(size_t dynamic, unsigned seed) {
  unsigned count = grid.x * grid.y * grid.z, size = block.x * block.y * block.z;
  if (count % cluster_size) fail("the grid is no multiple of the cluster");
  blocks = std::vector<Block>(count);
  clusters = std::vector<Barrier>(count / cluster_size);
  for (auto& cluster : clusters) cluster.members = cluster_size * size;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<std::vector<Thread*>> warps;
  for (unsigned b = 0; b < count; b++) {
    Block& it = blocks[b];
    it.barrier.members = it.alive = size;
    it.size = dynamic;
    it.dynamic = static_cast<char*>(aligned_alloc(128, (dynamic + 127) / 128 * 128 + 128));
    memset(it.dynamic, 0xff, dynamic);
    it.warps.resize((size + 31) / 32);
    it.lanes.resize(it.warps.size());
    for (unsigned i = 0; i < size; i++) {
      it.warps[i / 32].members++;
      auto thread = std::make_unique<Thread>();
      thread->index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
      thread->block_index = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
      thread->block = b, thread->warp = i / 32, thread->lane = i % 32;
      thread->stack.reset(new char[STACK]);
      getcontext(&thread->context);
      thread->context.uc_stack.ss_sp = thread->stack.get();
      thread->context.uc_stack.ss_size = STACK;
      thread->context.uc_link = &scheduler;
      makecontext(&thread->context, entry, 0);
      if (i % 32 == 0) warps.emplace_back();
      warps.back().push_back(thread.get());
      threads.push_back(std::move(thread));
    }
  }
  std::mt19937 random(seed);
  if (seed) std::shuffle(warps.begin(), warps.end(), random);
  for (size_t alive = threads.size(); alive > 0;) {
    bool any = false;
    for (auto& warp : warps) {
      bool went_on = false;
      for (Thread* thread : warp) {
        if (thread->done || (thread->word && *thread->word == thread->value)) continue;
        go_on(*thread);
        alive -= thread->done;
        went_on = true;
      }
      any |= went_on;
      if (went_on && seed) break;  // from the highest rank again
    }
    if (seed && any && random() % 50 == 0) std::shuffle(warps.begin(), warps.end(), random);
    while (!under_way.empty() && (!seed || !any || random() % 8 == 0)) {
      deliver(seed ? random() % under_way.size() : 0);
      any = true;
    }
    if (!any) deadlock(threads);
  }
  while (!under_way.empty()) deliver(0);
  for (auto& it : blocks) free(it.dynamic);
}

// --- a job: what to launch with what, from a file; the arrays go back into it ---

struct Argument {
  bool is_array;
  int number;
  std::vector<char> unused;
  char* data = nullptr;  // exactly as long as the array, so that the address sanitizer sees what is beyond it
  uint64_t size = 0;
};

template <class T>
T value(const Argument& argument) {
  if constexpr (std::is_pointer_v<T>)
    return reinterpret_cast<T>(argument.data);
  else
    return static_cast<T>(argument.number);
}

template <class... A, size_t... I>
void bind_kernel(void (*function)(A...), const std::vector<Argument>& arguments, std::index_sequence<I...>) {
  kernel = [=] { function(value<A>(arguments[I])...); };
}

// File: int32 grid[3], block[3], shared, seed, cluster, count; then each argument: int32 kind (0 number, 1 array), and
// int32 number, or uint64 size and the bytes.
template <class... A>
int run(void (*function)(A...), int argc, char** argv) {
  FILE* file = argc > 1 ? fopen(argv[1], "r+b") : nullptr;
  if (!file) fail("usage: executor JOB SOURCE [LINE ...]");
  source = argc > 2 ? argv[2] : "";
  for (int i = 3; i < argc; i++) removed.insert(atoi(argv[i]));
  auto read = [&](void* to, size_t size) {
    if (size && fread(to, size, 1, file) != 1) fail("the job is cut short");
  };
  int head[10];
  read(head, sizeof head);
  grid = {unsigned(head[0]), unsigned(head[1]), unsigned(head[2])};
  block = {unsigned(head[3]), unsigned(head[4]), unsigned(head[5])};
  cluster_size = head[8];
  if (head[9] != sizeof...(A)) fail("the kernel takes another number of arguments");
  std::vector<Argument> arguments(head[9]);
  long start = ftell(file);
  for (auto& argument : arguments) {
    int kind;
    read(&kind, 4);
    argument.is_array = kind == 1;
    if (!argument.is_array) {
      read(&argument.number, 4);
      continue;
    }
    read(&argument.size, 8);
    if (posix_memalign(reinterpret_cast<void**>(&argument.data), 256, argument.size ? argument.size : 1)) fail("memory");
    read(argument.data, argument.size);
  }
  bind_kernel(function, arguments, std::index_sequence_for<A...>{});
  launch(head[6], head[7]);
  fseek(file, start, SEEK_SET);
  for (auto& argument : arguments) {
    fseek(file, 4, SEEK_CUR);
    if (!argument.is_array) {
      fseek(file, 4, SEEK_CUR);
      continue;
    }
    fseek(file, 8, SEEK_CUR);
    if (argument.size && fwrite(argument.data, argument.size, 1, file) != 1) fail("the result cannot be written");
    free(argument.data);
  }
  fclose(file);
  for (auto& [line, count] : used) printf("used %d %ld\n", line, count);
  return 0;
}

// A __shared__ array: one for each block, of one static size.
template <class T, int ID>
T& shared() {
  auto& memory = here().named[ID];
  if (memory.empty()) memory.assign(sizeof(T), char(0xff));
  return *reinterpret_cast<T*>(memory.data());
}

template <class T>
T shuffle(T value, unsigned from) {
  my_lanes()[current->lane].value = 0;
  memcpy(&my_lanes()[current->lane].value, &value, sizeof value);
  meet(my_warp(), "a shuffle");
  memcpy(&value, &my_lanes()[from < 32 ? from : current->lane].value, sizeof value);
  meet(my_warp(), "a shuffle");
  return value;
}

}  // namespace executor

#define threadIdx (executor::current->index)
#define blockIdx (executor::current->block_index)
#define gridDim (executor::grid)
#define blockDim (executor::block)
#define DYNAMIC_SHARED(name) char* name = executor::here().dynamic
#define SHARED(type, name, count) type(&name)[count] = executor::shared<type[count], __COUNTER__>()
#define WHERE int line = __builtin_LINE(), const char* file = __builtin_FILE()

inline void __syncthreads(WHERE) {
  if (!executor::left_out(line, file)) executor::meet(executor::here().barrier, "__syncthreads");
}
inline void __syncwarp(WHERE) {
  if (!executor::left_out(line, file)) executor::meet(executor::my_warp(), "__syncwarp");
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) { return executor::shuffle(value, executor::current->lane ^ mask); }
template <class T>
T __shfl_sync(unsigned, T value, int from) { return executor::shuffle(value, from); }
inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }

// --- the twins of kernels/device.cuh ---

inline unsigned bits(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
inline float from_bits(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
inline float exp2_approx(float x) { return exp2f(x); }
inline float reciprocal_approx(float x) { return 1.f / x; }

inline unsigned bfloat16_of(float x) {  // to nearest, ties to even
  unsigned u = bits(x);
  return x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
inline unsigned pack_bfloat16(float first, float second) { return bfloat16_of(first) | bfloat16_of(second) << 16; }

inline void mma(float (&acc)[4], const uint4& a, unsigned b0, unsigned b1) {
  auto& lanes = executor::my_lanes();
  int lane = executor::current->lane;
  lanes[lane].a = a, lanes[lane].b0 = b0, lanes[lane].b1 = b1;
  executor::meet(executor::my_warp(), "mma");
  auto half = [](unsigned word, int upper) { return from_bits(upper ? word & 0xffff0000u : word << 16); };
  for (int i = 0; i < 4; i++) {
    int row = lane / 4 + (i & 2) * 4, column = lane % 4 * 2 + (i & 1);
    for (int k = 0; k < 16; k++) {
      const executor::Lane& of_a = lanes[row % 8 * 4 + k % 8 / 2];
      const executor::Lane& of_b = lanes[column * 4 + k % 8 / 2];
      unsigned words[4] = {of_a.a.x, of_a.a.y, of_a.a.z, of_a.a.w};  // rows 0 and 8 of k < 8, then of k >= 8
      acc[i] += half(words[k / 8 * 2 + row / 8], k & 1) * half(k / 8 ? of_b.b1 : of_b.b0, k & 1);
    }
  }
  executor::meet(executor::my_warp(), "mma");
}

typedef char* shared_address;

inline unsigned cluster_rank() { return executor::current->block % executor::cluster_size; }
inline void cluster_barrier(WHERE) {
  if (executor::left_out(line, file)) return;
  executor::meet(executor::clusters[executor::current->block / executor::cluster_size], "cluster_barrier");
}
inline shared_address in_block(const void* local, unsigned rank) {
  if (rank >= executor::cluster_size) executor::fail("a block that the cluster does not have");
  unsigned other = executor::current->block / executor::cluster_size * executor::cluster_size + rank;
  return executor::blocks[other].dynamic + (static_cast<const char*>(local) - executor::here().dynamic);
}
inline void mbarrier_init(unsigned long long* barrier, unsigned arrivals) {
  if (executor::here().mbarriers.count(barrier)) executor::fail("an mbarrier is initialised twice");
  executor::here().mbarriers[barrier] = {0, arrivals, arrivals, 0};
}
inline void mbarrier_expect(unsigned long long* barrier, unsigned bytes, WHERE) {
  if (executor::left_out(line, file)) return;
  executor::MBarrier& it = executor::mbarrier(executor::current->block, barrier);
  if (it.pending == 0) executor::fail("more arrivals than the mbarrier was made for");
  it.bytes += bytes;
  it.pending--;
  it.check();
}
inline void mbarrier_wait(unsigned long long* barrier, unsigned parity, WHERE) {
  if (executor::left_out(line, file)) return;
  executor::wait_until_not(&executor::mbarrier(executor::current->block, barrier).phase, parity, "mbarrier_wait");
}
inline void send(shared_address to, shared_address barrier, unsigned a, unsigned b, unsigned c, unsigned d) {
  if (reinterpret_cast<uintptr_t>(to) % 16) executor::fail("a message to an address that is no multiple of 16");
  executor::under_way.push_back({to, barrier, {a, b, c, d}, executor::block_of(to)});
}
