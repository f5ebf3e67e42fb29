#include "tests/benchmark/idle_side.h"

#include <cinttypes>
#include <cstdio>
#include <string>

#include "absl/status/status.h"
#include "tests/benchmark/program.h"

namespace deka::benchmark {
namespace {

class IdleChannels final : public Side {
 public:
  explicit IdleChannels(int channels) : channels_(channels) {}

  absl::StatusOr<Run> Measure() override {
    absl::StatusOr<std::unique_ptr<Program>> parent = Program::Start(
        {.command = {Runfile("tests/benchmark/idle_parent"), std::to_string(channels_)}});
    if (!parent.ok()) return parent.status();
    const absl::StatusOr<std::string> line = (*parent)->ReadLine();
    if (!line.ok()) return line.status();
    Run run;
    int64_t resident = 0, page_tables = 0;
    if (std::sscanf(line->c_str(),
                    "{\"channels\":%" SCNd64 ",\"messages\":%" SCNd64 ",\"resident\":%" SCNd64
                    ",\"page_tables\":%" SCNd64 "}",
                    &run.sent, &run.received, &resident, &page_tables) != 4) {
      return absl::InternalError("idle_parent answers " + *line);
    }
    run.value = static_cast<double>(resident) / static_cast<double>(channels_);
    return Counted(run);
  }

 private:
  const int channels_;
};

}  // namespace

SideOr MakeIdleChannels(int channels) { return std::make_unique<IdleChannels>(channels); }

}  // namespace deka::benchmark
