// A program that runs beside this one: a yardstick's process, an agent, an observer.
//
//   Start -> runs -> Stop, or the destructor, which kills it
//
// It may have a channel: a socket pair, this process' end and its descriptor 3, in dialect node, so
// that Node programs and our own children take it as that of their parent. WriteLine and ReadLine
// use it; who is in a hurry uses the socket itself.
//
// Thread: one at a time.
#ifndef TESTS_BENCHMARK_PROGRAM_H_
#define TESTS_BENCHMARK_PROGRAM_H_

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/descriptor.h"

namespace deka::benchmark {

// For whatever has to happen: beyond it something hangs.
inline constexpr std::chrono::seconds kDeadline{120};

// The path of a file that Bazel has put beside this program, as `server/deka-agent`.
std::string Runfile(std::string_view path);

class Program {
 public:
  struct Options {
    std::vector<std::string> command;  // the program, after PATH, and its arguments
    bool channel = true;
    std::string log_path = {};  // where its standard error goes; empty: to this one's
  };

  static absl::StatusOr<std::unique_ptr<Program>> Start(Options options);
  ~Program();

  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t pid() const { return pid_; }

  // This end of the channel: blocking.
  int socket() const { return socket_.get(); }

  absl::Status WriteLine(std::string_view line);
  // Without its line break.
  absl::StatusOr<std::string> ReadLine(std::chrono::milliseconds deadline = kDeadline);

  absl::Status Signal(int number) const;

  // Waits until it has ended: its exit code, or an error that names the signal that ended it.
  absl::StatusOr<int> Wait(std::chrono::milliseconds deadline = kDeadline);

 private:
  Program(std::string name, pid_t pid, ipc::Descriptor pidfd, ipc::Descriptor socket)
      : name_(std::move(name)), pid_(pid), pidfd_(std::move(pidfd)), socket_(std::move(socket)) {}

  const std::string name_;
  const pid_t pid_;
  ipc::Descriptor pidfd_;  // until it has ended
  ipc::Descriptor socket_;
  std::string read_;  // and not yet given out
};

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_PROGRAM_H_
