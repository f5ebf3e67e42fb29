// What one line costs: cutting it out of the stream, reading it, and looking whether an observer
// wants it. Beside it simdjson's parser on the same bytes, and memchr.

#include <simdjson.h>

#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "benchmark/benchmark.h"
#include "ipc/dialect.h"
#include "ipc/json.h"
#include "ipc/json_match.h"
#include "ipc/line_framer.h"

namespace deka::ipc {
namespace {

constexpr size_t kDepthMax = 256;

// A message of about `bytes` bytes: one long string, or many small members.
std::string OneString(size_t bytes) {
  return "{\"text\":\"" + std::string(bytes - 11, 'x') + "\"}";
}

std::string ManyMembers(size_t bytes) {
  std::string json = "[";
  while (json.size() + 40 < bytes) json += R"({"id":12345,"ok":true,"name":"child"},)";
  return json + "null]";
}

template <std::string (*make)(size_t)>
void BM_CheckJson(benchmark::State& state) {
  const std::string json = make(static_cast<size_t>(state.range(0)));
  for (auto _ : state) benchmark::DoNotOptimize(CheckJson(json, kDepthMax));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(json.size()));
}
BENCHMARK(BM_CheckJson<OneString>)->Arg(32)->Arg(1 << 18);
BENCHMARK(BM_CheckJson<ManyMembers>)->Arg(1 << 12)->Arg(1 << 18);

template <std::string (*make)(size_t)>
void BM_Simdjson(benchmark::State& state) {
  const simdjson::padded_string json(make(static_cast<size_t>(state.range(0))));
  simdjson::dom::parser parser;
  for (auto _ : state) benchmark::DoNotOptimize(parser.parse(json).error());
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(json.size()));
}
BENCHMARK(BM_Simdjson<OneString>)->Arg(32)->Arg(1 << 18);
BENCHMARK(BM_Simdjson<ManyMembers>)->Arg(1 << 12)->Arg(1 << 18);

void BM_Decode(benchmark::State& state) {
  const Codec codec(static_cast<Dialect>(state.range(0)), 1 << 20, kDepthMax);
  const FrameParts frame = codec.Encode(R"({"n":12345,"text":"hello, you"})");
  std::string line = std::string(frame.prefix).append(frame.value).append(frame.suffix);
  line.pop_back();
  for (auto _ : state) benchmark::DoNotOptimize(codec.Decode(line));
}
BENCHMARK(BM_Decode)->Arg(static_cast<int>(Dialect::kDeka))->Arg(static_cast<int>(Dialect::kNode));

// An object of 200 bytes, and conditions on its last member.
void BM_JsonMatch(benchmark::State& state, std::string_view pointer,
                  std::optional<std::string_view> equals) {
  const std::string json =
      R"({"id":12345,"time":"2024-05-06T07:08:09.123Z","level":"info","tags":["a","b","c"],)"
      R"("request":{"method":"GET","path":"/users/17","status":200,"seconds":0.0123},)"
      R"("user":{"name":"ann","roles":["admin","user"]}})";
  const JsonMatch match = JsonMatch::Create(pointer, equals).value();
  if (!match.Matches(json)) state.SkipWithError("does not match");
  for (auto _ : state) benchmark::DoNotOptimize(match.Matches(json));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(json.size()));
}
BENCHMARK_CAPTURE(BM_JsonMatch, exists, "/user/name", std::nullopt);
BENCHMARK_CAPTURE(BM_JsonMatch, text, "/user/name", R"("ann")");
BENCHMARK_CAPTURE(BM_JsonMatch, number, "/request/status", "200");
BENCHMARK_CAPTURE(BM_JsonMatch, object, "/user", R"({"roles":["admin","user"],"name":"ann"})");

// What costs the most: many small objects, each of them to be compared with a large one.
void BM_JsonMatchHostile(benchmark::State& state) {
  std::string members = R"("0":0)";
  for (int i = 1; i < 6000; ++i) {
    members += ",\"" + std::to_string(i) + "\":" + std::to_string(i % 10);
  }
  std::string json = R"({"a":{"1":1})";
  while (json.size() < (1 << 20)) json += R"(,"a":{"1":1})";
  json += "}";
  const JsonMatch match = JsonMatch::Create("/a", "{" + members + "}").value();
  for (auto _ : state) benchmark::DoNotOptimize(match.Matches(json));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(json.size()));
}
BENCHMARK(BM_JsonMatchHostile);

void BM_Frame(benchmark::State& state) {
  const size_t line_bytes = static_cast<size_t>(state.range(0));
  constexpr size_t kCapacity = 1 << 19;
  std::string ring;
  while (ring.size() < kCapacity) ring += std::string(line_bytes - 1, 'x') + "\n";
  ring.resize(kCapacity);
  for (auto _ : state) {
    LineFramer framer({.line_bytes_max = 1 << 18});
    while (framer.Next({ring.data(), kCapacity, kCapacity}).kind != Frame::Kind::kNeedMore) {
    }
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(kCapacity));
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kCapacity / line_bytes));
}
BENCHMARK(BM_Frame)->Arg(32)->Arg(1 << 18);

void BM_Memchr(benchmark::State& state) {
  const std::string text(1 << 18, 'x');
  for (auto _ : state) benchmark::DoNotOptimize(std::memchr(text.data(), '\n', text.size()));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
}
BENCHMARK(BM_Memchr);

}  // namespace
}  // namespace deka::ipc
