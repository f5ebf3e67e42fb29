// An observer of everything, in a process of its own: to be suspended.
//
//   observer unix:PATH     on its channel: {"standing":1}, then for each line that it reads its
//                          totals (ledger.h), and what broke its account, if anything did:
//                          {"totals":{...},"status":"..."}
//
// Ends when its channel does.

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "absl/status/statusor.h"
#include "sdk/cpp/client.h"
#include "tests/benchmark/ledger.h"

namespace deka::benchmark {
namespace {

constexpr int kChannel = 3;

bool Say(const std::string& json) {
  const std::string line = json + "\n";
  return write(kChannel, line.data(), line.size()) == static_cast<ssize_t>(line.size());
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "observer: %s\n", std::string(status.message()).c_str());
  return 1;
}

int Main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: observer unix:PATH\n");
    return 2;
  }
  Ledger ledger;
  const absl::StatusOr<Client> client = Client::Connect({.target = argv[1]});
  if (!client.ok()) return Fail(client.status());
  const absl::StatusOr<Observation> observation = client->Observe(Everything(), ledger.Callbacks());
  if (!observation.ok()) return Fail(observation.status());
  if (!Say("{\"standing\":1}")) return 0;
  char byte;
  while (read(kChannel, &byte, 1) == 1) {
    if (byte != '\n') continue;
    const absl::Status status = ledger.status();
    if (!Say(fmt::format(R"({{"totals":{},"status":"{}"}})", ledger.totals().ToJson(),
                         std::string(status.message())))) {
      break;
    }
  }
  return 0;
}

}  // namespace
}  // namespace deka::benchmark

int main(int argc, char** argv) { return deka::benchmark::Main(argc, argv); }
