// A deka-agent of its own, with a client.
//
// Thread: any, but for Start and the destructor.
#ifndef TESTS_BENCHMARK_AGENT_PROGRAM_H_
#define TESTS_BENCHMARK_AGENT_PROGRAM_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sdk/cpp/client.h"
#include "tests/benchmark/program.h"

namespace deka::benchmark {

class AgentProgram {
 public:
  // On a socket in a directory of its own. `config` is the text of an AgentConfig.
  static absl::StatusOr<std::unique_ptr<AgentProgram>> Start(const std::string& config = "");

  // Kills it: its children see their channels end, and go.
  ~AgentProgram();

  // Stops it in order: its exit code.
  absl::StatusOr<int> Stop();

  Program& program() { return *program_; }
  pid_t pid() const { return program_->pid(); }
  const std::string& target() const { return target_; }  // unix:PATH
  const std::string& log_path() const { return log_path_; }
  const Client& client() const { return *client_; }

  // Forks a program of ours, dialect node.
  absl::StatusOr<Child> Fork(std::string_view runfile, std::vector<std::string> args = {}) const;

 private:
  explicit AgentProgram(const std::string& directory)
      : directory_(directory),
        target_("unix:" + directory + "/agent.sock"),
        log_path_(directory + "/agent.log") {}

  const std::string directory_;
  const std::string target_;
  const std::string log_path_;
  std::unique_ptr<Program> program_;
  std::unique_ptr<Client> client_;
};

// The request to observe what one child says, or all do; nothing else is shown.
v1::ObserveRequest MessagesOf(const std::string& child);
v1::ObserveRequest MessagesOfAll();

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_AGENT_PROGRAM_H_
