// The memory of one child: all that must outlive the agent.
//
//   | streams (ipc/stream_memory.h) | description | finished sends | log |
//
// The control page of the streams has room for a control of ours: the log's ring, how the child
// ended, who disconnected it. In an embedded parent it is anonymous memory; under a keeper a file
// (memfd, sealed against resize) that a successor maps. Only pages that are touched cost memory.
//
// Thread: the loop's; the log's part is EventLog's.
#ifndef AGENT_CHILD_MEMORY_H_
#define AGENT_CHILD_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/agent_memory.h"
#include "agent/log_memory.h"
#include "agent/record_ring.h"
#include "ipc/descriptor.h"
#include "ipc/stream_memory.h"

namespace deka::agent {

// A send with a request id, and what became of it.
struct FinishedSend {
  static constexpr size_t kKeyBytesMax = 192;
  static constexpr uint16_t kWritten = 0xffff;

  uint64_t fingerprint = 0;
  int64_t time_us = 0;
  int64_t sequence = 0;
  uint64_t written_bytes = 0;
  uint16_t reason = 0;  // an ipc::Reason, or kWritten
  uint16_t key_bytes = 0;
  char key[kKeyBytesMax] = {};  // {principal, request id}
};
static_assert(sizeof(FinishedSend) <= 256);

class ChildMemory {
 public:
  static constexpr size_t kDescriptionBytesMax = 32 << 10;
  static constexpr size_t kSenderBytesMax = 160;

  struct Limits {
    ipc::StreamMemory::Limits streams;
    size_t log_bytes_max = 0;
    size_t finished_max = 0;  // sends remembered
  };

  struct Control {
    uint64_t magic = 0;
    uint64_t number = 0;
    uint64_t bytes = 0;  // of the whole memory
    Limits limits;
    uint64_t description_bytes = 0;
    RecordRing::Control ring;

    // How it ended: stored before `exited` is recorded.
    int32_t wait_status = 0;
    uint8_t exit_known = 0;
    uint8_t still_held = 0;
    uint8_t timed_out = 0;  // the signal of its time-out was sent

    // A disconnect that was asked for, stored before it begins. `disconnect_mode`: 0, or one more
    // than the ipc::Channel::Mode.
    uint8_t disconnect_mode = 0;
    uint32_t disconnected_by = 0;  // v1::Disconnected::By
    uint32_t sender_bytes = 0;
    char sender[kSenderBytesMax] = {};
  };
  static_assert(sizeof(Control) <= ipc::StreamMemory::kOwnerBytes);

  // Anonymous. kChildrenLimit if the system has no memory for it.
  static absl::StatusOr<std::shared_ptr<ChildMemory>> Allocate(const Limits& limits);
  // A new file. kChildrenLimit, kDescriptorsExhausted.
  static absl::StatusOr<std::shared_ptr<ChildMemory>> Create(const Limits& limits, uint64_t number);
  // A file that another process has left; a commit of its that `agent` knows is finished.
  // INVALID_ARGUMENT, which names the field, if it holds what cannot be.
  static absl::StatusOr<std::shared_ptr<ChildMemory>> Recover(ipc::Descriptor file,
                                                              AgentMemory& agent);

  ~ChildMemory();

  ChildMemory(const ChildMemory&) = delete;
  ChildMemory& operator=(const ChildMemory&) = delete;

  uint64_t number() const { return control().number; }
  // -1: anonymous.
  int file() const { return file_.get(); }
  Control& control() const { return *reinterpret_cast<Control*>(streams_->control().owner); }
  ipc::Progress& progress() const { return streams_->progress(); }

  // A view; `memory` outlives it.
  static ipc::StreamMemory StreamsOf(const ChildMemory& memory);
  static LogMemory LogOf(const std::shared_ptr<ChildMemory>& memory);

  std::string_view description() const;
  // At most kDescriptionBytesMax, before the child starts.
  void set_description(std::string_view bytes);

  // Nothing streams any more: their pages are given back, all but the control's.
  void GiveBackStreams();

  // Of the `number`th finished send; it takes the place of the one finished_max before.
  FinishedSend& finished(uint64_t number) const;

 private:
  ChildMemory(std::span<char> bytes, ipc::Descriptor file)
      : bytes_(bytes), file_(std::move(file)) {}
  absl::Status Format(const Limits& limits, uint64_t number);
  absl::Status CheckFound(AgentMemory& agent);

  std::span<char> bytes_;
  ipc::Descriptor file_;
  std::optional<ipc::StreamMemory> streams_;  // a view of its part
};

}  // namespace deka::agent

#endif  // AGENT_CHILD_MEMORY_H_
