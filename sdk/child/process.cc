#include "sdk/child/process.h"

#include <cstdio>
#include <string>
#include <utility>

#include "ipc/error.h"

namespace deka {

absl::StatusOr<std::unique_ptr<Process>> Process::Open(Listeners listeners,
                                                       ipc::Channel::Options options) {
  if (!listeners.on_message) {
    return ipc::MakeError(ipc::Reason::kInvalidArgument,
                          "on_message is not set, so the parent's messages would be lost; set it");
  }
  std::unique_ptr<Process> process(new Process(std::move(listeners)));
  absl::StatusOr<std::unique_ptr<ipc::Process>> opened =
      ipc::Process::Open(process->loop_, std::move(options), *process);
  if (!opened.ok()) return opened.status();
  process->process_ = *std::move(opened);
  return process;
}

absl::StatusOr<bool> Process::Send(std::string_view json, SendCallback on_written) {
  const uint64_t tag = on_written ? last_tag_ + 1 : 0;
  const absl::StatusOr<ipc::Channel::Accepted> accepted = process_->Send(json, tag);
  if (!accepted.ok()) return accepted.status();
  if (on_written) {
    last_tag_ = tag;
    callbacks_.emplace(tag, std::move(on_written));
  }
  return *accepted == ipc::Channel::Accepted::kAccepted;
}

absl::Status Process::Disconnect() { return process_->Disconnect(); }
bool Process::connected() const { return process_->connected(); }
ipc::Dialect Process::dialect() const { return process_->dialect(); }

void Process::OnMessage(ipc::Message message) {
  const auto& told = message.internal ? listeners_.on_internal_message : listeners_.on_message;
  if (told) told(*this, message.json);
}

void Process::OnError(ipc::BadFrame frame) {
  if (listeners_.on_error) {
    listeners_.on_error(*this, frame.reason);
  } else {
    std::fprintf(stderr, "a message of the parent was refused: %s\n",
                 std::string(frame.reason.message()).c_str());
  }
}

void Process::OnSent(ipc::Sent sent) {
  auto callback = callbacks_.extract(sent.tag);
  if (!callback.empty()) callback.mapped()(sent.status);
}

void Process::OnDrain() {
  if (listeners_.on_drain) listeners_.on_drain(*this);
}

void Process::OnDisconnect(absl::Status reason) {
  if (listeners_.on_disconnect) listeners_.on_disconnect(*this, reason);
}

}  // namespace deka
