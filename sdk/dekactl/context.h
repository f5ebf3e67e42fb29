// What all commands share: the agent that they talk to, where they say things, how they end.
#ifndef SDK_DEKACTL_CONTEXT_H_
#define SDK_DEKACTL_CONTEXT_H_

#include <string>
#include <string_view>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sdk/cpp/client.h"
#include "sdk/dekactl/exit_code.h"
#include "sdk/dekactl/output.h"

namespace deka::dekactl {

struct Context {
  std::string target;  // --target
  Output out{1};
  Output err{2};
  int exit_code = kComplete;  // of the command that ran

  // The agent; one of its children. Say on a terminal what they wait for.
  absl::StatusOr<Client> Connect();
  absl::StatusOr<Child> Find(const std::string& name);

  // `dekactl: MESSAGE` on standard error, in one line.
  void Say(std::string_view message);

  // On a terminal: a line of help, on standard error.
  void Hint(std::string_view message);

  // Says what went wrong, and with `where` with what; the exit code for it.
  int Fail(const absl::Status& error, std::string_view where = "");

  // The exit code of a command that has written all its results.
  int Written();
};

// A check for an option from one of the parsers in words.h.
template <typename Parse>
CLI::Validator Check(Parse parse) {
  return CLI::Validator(
      [parse](std::string& word) { return std::string(parse(word).status().message()); }, "");
}

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_CONTEXT_H_
