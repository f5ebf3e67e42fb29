#include "sdk/dekactl/context.h"

#include <errno.h>
#include <string.h>

#include "fmt/format.h"
#include "sdk/dekactl/progress.h"

namespace deka::dekactl {

absl::StatusOr<Client> Context::Connect() {
  Progress progress(err, "waiting for the agent");
  return Client::Connect({.target = target});
}

absl::StatusOr<Child> Context::Find(const std::string& name) {
  absl::StatusOr<Client> client = Connect();
  if (!client.ok()) {
    return client.status();
  }
  Progress progress(err, "asking for " + name);
  return client->Find(name);
}

void Context::Say(std::string_view message) {
  err.Line(Printable(fmt::format("dekactl: {}", message)));
}

void Context::Hint(std::string_view message) {
  if (err.terminal()) {
    err.Line(Paint(err.colored(), Color::kDim, message));
  }
}

int Context::Fail(const absl::Status& error, std::string_view where) {
  std::string message(error.message());
  const std::string candidates = ErrorMetadata(error, "candidates");
  if (!candidates.empty() && message.find(candidates) == std::string::npos) {
    message += fmt::format("; name one of {}", candidates);
  }
  Say(fmt::format("{}{}", where, message.empty() ? error.ToString() : message));
  return ErrorReason(error) == "CHILD_NOT_FOUND" ? kNoSuchChild : kError;
}

int Context::Written() {
  const int error = out.error();
  if (error == 0 || error == EPIPE) {
    return kComplete;
  }
  Say(fmt::format("cannot write to standard output: {}", strerror(error)));
  return kError;
}

}  // namespace deka::dekactl
