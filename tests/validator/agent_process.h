// A deka-agent that runs for one history.
#ifndef TESTS_VALIDATOR_AGENT_PROCESS_H_
#define TESTS_VALIDATOR_AGENT_PROCESS_H_

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "deka/bridge/v1/agent_config.pb.h"
#include "ipc/mutex.h"

namespace deka::validator {

class AgentProcess {
 public:
  // Answers when it serves. Its files lie in `directory`.
  static absl::StatusOr<std::unique_ptr<AgentProcess>> Start(const std::string& program,
                                                             const std::string& directory,
                                                             const bridge::v1::AgentConfig& config);

  // Kills it if it still runs.
  ~AgentProcess();

  const std::string& target() const { return target_; }
  std::string log() const;

  // Tells it to end, and waits: its exit code, or 128 and the signal that ended it; -1 if it has
  // not ended in time.
  int Stop(std::chrono::milliseconds limit);

 private:
  AgentProcess() = default;
  void ReadLog(int pipe);
  bool AwaitServed();

  std::string target_;
  pid_t pid_ = 0;
  bool ended_ = false;
  std::thread reader_;
  mutable ipc::Mutex mutex_;
  mutable ipc::CondVar changed_;
  std::string log_ ABSL_GUARDED_BY(mutex_);
  bool log_ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace deka::validator

#endif  // TESTS_VALIDATOR_AGENT_PROCESS_H_
