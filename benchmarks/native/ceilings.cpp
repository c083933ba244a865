// What this machine can do at most, measured while a benchmark runs: bytes read from memory, int8
// dot products, fp32 multiply-adds, and dot products of bfloat16 pairs where there are any.
//
//   ceilings [threads]: for each line on stdin, one line of JSON on stdout; ends at end of file.
//
// Memory: every thread reads its own contiguous share of a 1 GiB buffer of huge pages, larger than
// any cache here, and asks for it ahead of time (4 to 6 % more than the processor does by itself). Arithmetic: chains of independent accumulators in registers, no memory at all, so
// nothing that reads operands can be faster. The best of the passes is the ceiling; the median of
// the reads says how quiet the machine was. Between two lines the threads do not exist: an idle
// instance takes no processor time.
//
// Build: g++ -O3 -std=c++20 -march=native -pthread ceilings.cpp -o ceilings
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#define HAS_VECTORS 1
#else
#define HAS_VECTORS 0
#endif

namespace {

constexpr size_t kBufferBytes = size_t{1} << 30;
constexpr size_t kAheadBytes = 6144;
constexpr int kReadPasses = 5;
constexpr int kComputePasses = 3;
constexpr int64_t kComputeLoops = 1'000'000;  // some 4 ms
constexpr int kChains = 16;  // at least latency × throughput, so that no chain is waited for

std::atomic<uint64_t> g_sink;  // what is computed must be used

double clock_s(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

// Seconds from the moment at which all threads are there until the last is done.
template <class Work>
double timed(int threads, const Work& work) {
  std::atomic<int> waiting{threads};
  std::vector<double> begins(threads), ends(threads);
  auto body = [&](int thread) {
    waiting--;
    while (waiting.load() > 0) std::this_thread::yield();
    begins[thread] = clock_s(CLOCK_MONOTONIC);
    work(thread);
    ends[thread] = clock_s(CLOCK_MONOTONIC);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; i++) others.emplace_back(body, i);
  body(0);
  for (auto& other : others) other.join();
  return *std::max_element(ends.begin(), ends.end()) -
         *std::min_element(begins.begin(), begins.end());
}

// `bytes`: a multiple of 512; `data` 64-byte aligned.
void read_all(const char* data, size_t bytes) {
#if HAS_VECTORS
  __m512i sums[8];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  for (size_t i = 0; i < bytes; i += 512)
#pragma GCC unroll 8
    for (size_t j = 0; j < 8; j++) {
      __builtin_prefetch(data + i + 64 * j + kAheadBytes, 0, 0);
      sums[j] = _mm512_add_epi64(sums[j], _mm512_load_si512(data + i + 64 * j));
    }
  for (int j = 1; j < 8; j++) sums[0] = _mm512_add_epi64(sums[0], sums[j]);
  g_sink += static_cast<uint64_t>(_mm512_reduce_add_epi64(sums[0]));
#else
  const auto* words = reinterpret_cast<const uint64_t*>(data);
  uint64_t sums[8] = {};
  for (size_t i = 0; i < bytes / 8; i += 8)
    for (size_t j = 0; j < 8; j++) sums[j] += words[i + j];
  for (uint64_t sum : sums) g_sink += sum;
#endif
}

#if HAS_VECTORS
// The loops are assembly as a whole: GCC 12 keeps arrays of accumulators in memory, which makes an
// eighth of the peak. vzeroall clears zmm0 to zmm15, the chains.
void dot_products() {
  int64_t loops = kComputeLoops;
  asm volatile(
      "vzeroall\n"
      "1:\n\t"
      "vpdpbusd %1, %1, %%zmm0\n\t"
      "vpdpbusd %1, %1, %%zmm1\n\t"
      "vpdpbusd %1, %1, %%zmm2\n\t"
      "vpdpbusd %1, %1, %%zmm3\n\t"
      "vpdpbusd %1, %1, %%zmm4\n\t"
      "vpdpbusd %1, %1, %%zmm5\n\t"
      "vpdpbusd %1, %1, %%zmm6\n\t"
      "vpdpbusd %1, %1, %%zmm7\n\t"
      "vpdpbusd %1, %1, %%zmm8\n\t"
      "vpdpbusd %1, %1, %%zmm9\n\t"
      "vpdpbusd %1, %1, %%zmm10\n\t"
      "vpdpbusd %1, %1, %%zmm11\n\t"
      "vpdpbusd %1, %1, %%zmm12\n\t"
      "vpdpbusd %1, %1, %%zmm13\n\t"
      "vpdpbusd %1, %1, %%zmm14\n\t"
      "vpdpbusd %1, %1, %%zmm15\n\t"
      "dec %0\n\t"
      "jnz 1b"
      : "+r"(loops)
      : "v"(_mm512_set1_epi8(1))
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

void multiply_adds() {
  int64_t loops = kComputeLoops;
  asm volatile(
      "vzeroall\n"
      "1:\n\t"
      "vfmadd213ps %1, %1, %%zmm0\n\t"
      "vfmadd213ps %1, %1, %%zmm1\n\t"
      "vfmadd213ps %1, %1, %%zmm2\n\t"
      "vfmadd213ps %1, %1, %%zmm3\n\t"
      "vfmadd213ps %1, %1, %%zmm4\n\t"
      "vfmadd213ps %1, %1, %%zmm5\n\t"
      "vfmadd213ps %1, %1, %%zmm6\n\t"
      "vfmadd213ps %1, %1, %%zmm7\n\t"
      "vfmadd213ps %1, %1, %%zmm8\n\t"
      "vfmadd213ps %1, %1, %%zmm9\n\t"
      "vfmadd213ps %1, %1, %%zmm10\n\t"
      "vfmadd213ps %1, %1, %%zmm11\n\t"
      "vfmadd213ps %1, %1, %%zmm12\n\t"
      "vfmadd213ps %1, %1, %%zmm13\n\t"
      "vfmadd213ps %1, %1, %%zmm14\n\t"
      "vfmadd213ps %1, %1, %%zmm15\n\t"
      "dec %0\n\t"
      "jnz 1b"
      : "+r"(loops)
      : "v"(_mm512_set1_ps(0.5f))
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

#if defined(__AVX512BF16__)
void pair_products() {
  int64_t loops = kComputeLoops;
  asm volatile(
      "vzeroall\n"
      "1:\n\t"
      "vdpbf16ps %1, %1, %%zmm0\n\t"
      "vdpbf16ps %1, %1, %%zmm1\n\t"
      "vdpbf16ps %1, %1, %%zmm2\n\t"
      "vdpbf16ps %1, %1, %%zmm3\n\t"
      "vdpbf16ps %1, %1, %%zmm4\n\t"
      "vdpbf16ps %1, %1, %%zmm5\n\t"
      "vdpbf16ps %1, %1, %%zmm6\n\t"
      "vdpbf16ps %1, %1, %%zmm7\n\t"
      "vdpbf16ps %1, %1, %%zmm8\n\t"
      "vdpbf16ps %1, %1, %%zmm9\n\t"
      "vdpbf16ps %1, %1, %%zmm10\n\t"
      "vdpbf16ps %1, %1, %%zmm11\n\t"
      "vdpbf16ps %1, %1, %%zmm12\n\t"
      "vdpbf16ps %1, %1, %%zmm13\n\t"
      "vdpbf16ps %1, %1, %%zmm14\n\t"
      "vdpbf16ps %1, %1, %%zmm15\n\t"
      "dec %0\n\t"
      "jnz 1b"
      : "+r"(loops)
      : "v"(_mm512_set1_epi16(0x3f00))
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}
#endif

// 1e9 operations (a multiplication and an addition are two) a second, of all threads. Each thread's
// own processor time counts: nothing is shared, so what another process takes must not.
template <class Work>
double gops(int threads, int lanes, const Work& work) {
  double best = 0;
  for (int pass = 0; pass < kComputePasses; pass++) {
    std::vector<double> seconds(threads);
    timed(threads, [&](int thread) {
      double begin = clock_s(CLOCK_THREAD_CPUTIME_ID);
      work();
      seconds[thread] = clock_s(CLOCK_THREAD_CPUTIME_ID) - begin;
    });
    double rate = 0;
    for (double of_thread : seconds)
      rate += 2.0 * lanes * kChains * kComputeLoops / of_thread / 1e9;
    best = std::max(best, rate);
  }
  return best;
}
#endif

}  // namespace

int main(int argc, char** argv) {
  int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  if (threads < 1) return 2;
  void* memory =
      mmap(nullptr, kBufferBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  madvise(memory, kBufferBytes, MADV_HUGEPAGE);
  std::memset(memory, 1, kBufferBytes);
  const char* data = static_cast<const char*>(memory);
  size_t share = kBufferBytes / threads / 512 * 512;
  char line[64];
  while (std::fgets(line, sizeof line, stdin)) {
    std::vector<double> reads;
    for (int i = 0; i < kReadPasses; i++)
      reads.push_back(timed(threads, [&](int t) { read_all(data + t * share, share); }));
    std::sort(reads.begin(), reads.end());
    double gigabytes = share * threads / 1e9;
    std::printf("{\"threads\": %d, \"read_gb_s\": %.3f, \"read_gb_s_median\": %.3f", threads,
                gigabytes / reads.front(), gigabytes / reads[kReadPasses / 2]);
#if HAS_VECTORS
    std::printf(", \"int8_gop_s\": %.1f", gops(threads, 64, dot_products));
    std::printf(", \"fp32_gflop_s\": %.1f", gops(threads, 16, multiply_adds));
#if defined(__AVX512BF16__)
    std::printf(", \"bf16_gflop_s\": %.1f", gops(threads, 32, pair_products));
#endif
#endif
    std::printf("}\n");
    std::fflush(stdout);
  }
  return 0;
}
