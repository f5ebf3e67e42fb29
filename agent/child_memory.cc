#include "agent/child_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "fmt/format.h"
#include "ipc/error.h"

namespace deka::agent {
namespace {

constexpr uint64_t kMagic = 0x646c6968'63616b64u;  // "dkachild"
constexpr size_t kPage = LogMemory::kPageBytes;
constexpr size_t kLimitMax = size_t{1} << 40;  // beyond any that fits

constexpr size_t RoundUp(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// Where the parts begin.
struct Layout {
  explicit Layout(const ChildMemory::Limits& limits)
      : description(ipc::StreamMemory::BytesFor(limits.streams)),
        finished(description + ChildMemory::kDescriptionBytesMax),
        log(finished + RoundUp(limits.finished_max * sizeof(FinishedSend))),
        bytes(log + RoundUp(limits.log_bytes_max)) {}

  size_t description, finished, log, bytes;
};

absl::Status NoMemory(size_t bytes, int error) {
  if (error == EMFILE || error == ENFILE) {
    return ipc::MakeError(
        ipc::Reason::kDescriptorsExhausted,
        fmt::format("No descriptor is left for a child's memory: {}. End some children, or raise "
                    "the limit (ulimit -n).",
                    std::strerror(error)));
  }
  return ipc::MakeError(
      ipc::Reason::kChildrenLimit,
      fmt::format("No memory for a child of {} bytes: {}. End or forget some children, or give "
                  "them smaller logs and queues.",
                  bytes, std::strerror(error)));
}

absl::Status Impossible(std::string_view field, uint64_t value) {
  return ipc::MakeError(
      ipc::Reason::kInvalidArgument,
      fmt::format("The memory of a child cannot be taken over: its {} is {}, which cannot be.",
                  field, value),
      {{"field", std::string(field)}});
}

absl::StatusOr<std::span<char>> Map(size_t bytes, int file) {
  const int flags = file >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
  void* const base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, file, 0);
  if (base == MAP_FAILED) return NoMemory(bytes, errno);
  // A page touched must not become two megabytes, and a core dump not last for seconds.
  madvise(base, bytes, MADV_NOHUGEPAGE);
  if (file >= 0) madvise(base, bytes, MADV_DONTDUMP);
  return std::span<char>(static_cast<char*>(base), bytes);
}

}  // namespace

absl::StatusOr<std::shared_ptr<ChildMemory>> ChildMemory::Allocate(const Limits& limits) {
  const absl::StatusOr<std::span<char>> bytes = Map(Layout(limits).bytes, -1);
  if (!bytes.ok()) return bytes.status();
  std::shared_ptr<ChildMemory> memory(new ChildMemory(*bytes, ipc::Descriptor()));
  if (absl::Status status = memory->Format(limits, 0); !status.ok()) return status;
  return memory;
}

absl::StatusOr<std::shared_ptr<ChildMemory>> ChildMemory::Create(const Limits& limits,
                                                                 uint64_t number) {
  const size_t size = Layout(limits).bytes;
  ipc::Descriptor file(memfd_create("deka-child", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file.valid() || ftruncate(file.get(), static_cast<off_t>(size)) != 0 ||
      fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return NoMemory(size, errno);
  }
  const absl::StatusOr<std::span<char>> bytes = Map(size, file.get());
  if (!bytes.ok()) return bytes.status();
  std::shared_ptr<ChildMemory> memory(new ChildMemory(*bytes, std::move(file)));
  if (absl::Status status = memory->Format(limits, number); !status.ok()) return status;
  return memory;
}

absl::StatusOr<std::shared_ptr<ChildMemory>> ChildMemory::Recover(ipc::Descriptor file,
                                                                  AgentMemory& agent) {
  struct stat found;
  if (fstat(file.get(), &found) != 0) return Impossible("descriptor", static_cast<uint64_t>(errno));
  // It must not shrink under the mapping.
  const int seals = fcntl(file.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
    return Impossible("seal", static_cast<uint64_t>(seals));
  const auto size = static_cast<size_t>(found.st_size);
  if (size < kPage || size > kLimitMax) return Impossible("size", size);
  const absl::StatusOr<std::span<char>> bytes = Map(size, file.get());
  if (!bytes.ok()) return bytes.status();
  std::shared_ptr<ChildMemory> memory(new ChildMemory(*bytes, std::move(file)));
  if (absl::Status status = memory->CheckFound(agent); !status.ok()) return status;
  return memory;
}

absl::Status ChildMemory::Format(const Limits& limits, uint64_t number) {
  const Layout layout(limits);
  absl::StatusOr<ipc::StreamMemory> streams = ipc::StreamMemory::InRegion(
      {.bytes = bytes_.first(layout.description), .file = file_.get()}, limits.streams);
  if (!streams.ok()) return streams.status();
  streams_ = *std::move(streams);
  Control& control = *new (streams_->control().owner) Control;
  control.magic = kMagic;
  control.number = number;
  control.bytes = layout.bytes;
  control.limits = limits;
  return absl::OkStatus();
}

absl::Status ChildMemory::CheckFound(AgentMemory& agent) {
  auto& page = *reinterpret_cast<ipc::StreamMemory::Control*>(bytes_.data());
  auto& found = *reinterpret_cast<Control*>(page.owner);
  if (found.magic != kMagic) return Impossible("magic", found.magic);
  const Limits& limits = found.limits;
  for (const size_t limit :
       {limits.streams.message_bytes_max, limits.streams.queue_bytes_max,
        limits.streams.queue_messages_max, limits.streams.note_bytes_max,
        limits.streams.output_line_bytes_max, limits.log_bytes_max, limits.finished_max}) {
    if (limit > kLimitMax / sizeof(FinishedSend)) return Impossible("limit", limit);
  }
  const Layout layout(limits);
  if (found.bytes != bytes_.size() || layout.bytes != bytes_.size()) {
    return Impossible("size", found.bytes);
  }
  if (found.description_bytes > kDescriptionBytesMax) {
    return Impossible("size of its description", found.description_bytes);
  }
  if (found.sender_bytes > kSenderBytesMax) return Impossible("sender", found.sender_bytes);
  AgentMemory::Redo& redo = agent.redo;
  if (redo.last != 0 && redo.child == found.number) {
    const std::span<char> log = bytes_.subspan(layout.log);
    RecordRing ring(found.ring, log.data(), log.size());
    redo.values.ApplyTo(page.progress, ring);
    redo.last = 0;
  }
  absl::StatusOr<ipc::StreamMemory> streams = ipc::StreamMemory::Recover(
      {.bytes = bytes_.first(layout.description), .file = file_.get()}, limits.streams);
  if (!streams.ok()) return streams.status();
  streams_ = *std::move(streams);
  const uint64_t kept = progress().kept;
  for (uint64_t i = kept - std::min<uint64_t>(kept, limits.finished_max); i < kept; ++i) {
    if (finished(i).key_bytes > FinishedSend::kKeyBytesMax) {
      return Impossible("key of a finished send", finished(i).key_bytes);
    }
  }
  return absl::OkStatus();
}

ChildMemory::~ChildMemory() { munmap(bytes_.data(), bytes_.size()); }

ipc::StreamMemory ChildMemory::StreamsOf(const ChildMemory& memory) {
  return memory.streams_->View();
}

LogMemory ChildMemory::LogOf(const std::shared_ptr<ChildMemory>& memory) {
  Control& control = memory->control();
  const Layout layout(control.limits);
  return LogMemory({.owner = memory,
                    .number = control.number,
                    .control = &control.ring,
                    .progress = &memory->progress(),
                    .bytes = memory->bytes_.subspan(layout.log),
                    .of_file = memory->file() >= 0});
}

std::string_view ChildMemory::description() const {
  return {bytes_.data() + Layout(control().limits).description, control().description_bytes};
}

void ChildMemory::set_description(std::string_view bytes) {
  std::memcpy(bytes_.data() + Layout(control().limits).description, bytes.data(), bytes.size());
  control().description_bytes = bytes.size();
}

void ChildMemory::GiveBackStreams() {
  streams_->GiveBackPages(/*inbox_empty=*/true, /*outbox_empty=*/true);
  for (int i = 0; i < 2; ++i) streams_->GiveBackOutputPages(i);
}

FinishedSend& ChildMemory::finished(uint64_t number) const {
  char* const ring = bytes_.data() + Layout(control().limits).finished;
  return reinterpret_cast<FinishedSend*>(ring)[number % control().limits.finished_max];
}

}  // namespace deka::agent
