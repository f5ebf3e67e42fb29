#include "server/keeper_link.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "ipc/error.h"

namespace deka::server {
namespace {

using keeper::Message;
using keeper::Packet;
using keeper::Received;
using keeper::SpawnSpec;
using keeper::Type;

absl::Status NotOurs(std::string_view what) {
  return ipc::MakeError(
      ipc::Reason::kInvalidArgument,
      fmt::format("This agent cannot go on for its keeper: {}. Start both anew, from one version.",
                  what));
}

// What spawn::Options say, as a file for the keeper.
class SpecFile {
 public:
  explicit SpecFile(const spawn::Options& options) : bytes_(sizeof(SpawnSpec), '\0') {
    SpawnSpec spec;
    spec.program = Put(options.program);
    spec.arguments = bytes_.size();
    for (; options.arguments[spec.arguments_count] != nullptr; ++spec.arguments_count) {
      Put(options.arguments[spec.arguments_count]);
    }
    spec.environment = bytes_.size();
    for (; options.environment[spec.environment_count] != nullptr; ++spec.environment_count) {
      Put(options.environment[spec.environment_count]);
    }
    if (options.directory != nullptr) spec.directory = Put(options.directory);
    spec.session = static_cast<uint32_t>(options.session);
    if (options.user != nullptr) spec.has_user = 1, spec.user = *options.user;
    if (options.group != nullptr) spec.has_group = 1, spec.group = *options.group;
    if (options.descriptors_limit != nullptr) {
      spec.has_limit = 1;
      spec.limit_soft = options.descriptors_limit->rlim_cur;
      spec.limit_hard = options.descriptors_limit->rlim_max;
    }
    spec.descriptors_count = static_cast<uint32_t>(options.descriptors_count);
    for (size_t i = 0; i < options.descriptors_count; ++i) {
      spec.descriptors[i] = options.descriptors[i].to;
    }
    spec.bytes = bytes_.size();
    std::memcpy(bytes_.data(), &spec, sizeof(spec));
  }

  // Not valid, with errno, if the system has none.
  ipc::Descriptor Make() const {
    ipc::Descriptor file(memfd_create("deka-spawn", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    size_t written = 0;
    while (file.valid() && written < bytes_.size()) {
      const ssize_t count = write(file.get(), bytes_.data() + written, bytes_.size() - written);
      if (count <= 0) return {};
      written += static_cast<size_t>(count);
    }
    if (file.valid() &&
        fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) != 0) {
      return {};
    }
    return file;
  }

 private:
  uint64_t Put(std::string_view string) {
    const uint64_t offset = bytes_.size();
    bytes_.append(string).push_back('\0');
    return offset;
  }

  std::string bytes_;
};

}  // namespace

int KeeperLink::FromEnvironment() {
  const char* const value = std::getenv(keeper::kDescriptorVariable);
  if (value == nullptr) return -1;
  int descriptor = -1;
  const std::string_view text = value;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), descriptor);
  if (error != std::errc() || end != text.data() + text.size()) descriptor = -1;
  unsetenv(keeper::kDescriptorVariable);
  return descriptor;
}

absl::StatusOr<std::unique_ptr<KeeperLink>> KeeperLink::Open(int socket) {
  std::unique_ptr<KeeperLink> link(new KeeperLink(socket));
  if (fcntl(socket, F_SETFD, FD_CLOEXEC) != 0) {
    return NotOurs(fmt::format("descriptor {} is no socket of a keeper", socket));
  }
  return link;
}

KeeperLink::~KeeperLink() {
  if (file_ != nullptr) munmap(file_, keeper::AgentFile::kBytes);
}

absl::Status KeeperLink::AwaitGo() {
  // A spare is nothing without its keeper.
  const pid_t parent = getppid();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  while (!went_) {
    Packet packet;
    if (!Receive(0, packet)) return NotOurs("it has ended");
    if (absl::Status status = TakeMail(packet); !status.ok()) return status;
    if (keeper_pid_ != 0 && getppid() != parent) return NotOurs("it has ended");
  }
  prctl(PR_SET_PDEATHSIG, 0);
  if (memory_->magic == 0) new (memory_) agent::AgentMemory;
  if (memory_->magic != agent::AgentMemory::kMagic ||
      memory_->version != agent::AgentMemory::kVersion) {
    return NotOurs(fmt::format("it holds what version {} has left, and this is version {}",
                               memory_->version, agent::AgentMemory::kVersion));
  }
  // A redo of a batch that was not decided may stand there, beyond it: it is not done.
  if (memory_->next_sequence < 1) {
    return NotOurs(fmt::format("the file of the agent holds next_sequence {}, which cannot be",
                               memory_->next_sequence));
  }
  return absl::OkStatus();
}

absl::Status KeeperLink::TakeFile(Packet& packet) {
  ipc::Descriptor file(packet.count == 1 ? packet.descriptors[0] : -1);
  struct stat found = {};
  if (packet.message.number != keeper::kProtocolVersion) {
    return NotOurs(fmt::format("it speaks protocol {}, and this agent {}", packet.message.number,
                               keeper::kProtocolVersion));
  }
  if (!file.valid() || fstat(file.get(), &found) != 0 ||
      found.st_size != static_cast<off_t>(keeper::AgentFile::kBytes)) {
    return NotOurs("it gave no file");
  }
  void* const mapped =
      mmap(nullptr, keeper::AgentFile::kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (mapped == MAP_FAILED) return NotOurs(fmt::format("no memory: {}", std::strerror(errno)));
  file_ = mapped;
  memory_ =
      reinterpret_cast<agent::AgentMemory*>(static_cast<char*>(mapped) + sizeof(keeper::AgentFile));
  incarnation_ = static_cast<int64_t>(packet.message.id);
  keeper_pid_ = packet.message.pid;
  return absl::OkStatus();
}

// Before kGo.
absl::Status KeeperLink::TakeMail(Packet& packet) {
  const Message& message = packet.message;
  if (message.type == Type::kFile) return TakeFile(packet);
  std::vector<ipc::Descriptor> descriptors;
  for (size_t i = 0; i < packet.count; ++i) descriptors.emplace_back(packet.descriptors[i]);
  if (packet.truncated) return NotOurs("this process has no descriptors left for what it holds");
  switch (message.type) {
    case Type::kChild: {
      agent::Agent::FoundChild& child = children_[message.id];
      child.number = message.id;
      child.pid = message.pid;
      ipc::Descriptor* const places[] = {&child.memory, &child.channel, &child.output[0],
                                         &child.output[1], &child.pidfd};
      size_t next = 0;
      for (size_t i = 0; i < std::size(places); ++i) {
        if ((message.detail >> i & 1) == 0 || next == descriptors.size()) continue;
        *places[i] = std::move(descriptors[next++]);
      }
      if (message.detail & keeper::kHasExited) ended_[message.id] = message.status;
      break;
    }
    case Type::kExited:
      ended_[message.id] = message.status;
      break;
    case Type::kGone:
      if (message.detail == 1) {
        children_.erase(message.id);
        ended_.erase(message.id);
      } else if (const auto child = children_.find(message.id); child != children_.end()) {
        child->second.channel.Close();
        for (ipc::Descriptor& output : child->second.output) output.Close();
        child->second.pidfd.Close();
      }
      break;
    case Type::kKept:
      kept_[static_cast<uint32_t>(message.id)] = std::move(descriptors);
      break;
    case Type::kFed:
      // An agent that takes over at once is ready when it answers clients.
      if (message.detail == 0) Ready();
      break;
    case Type::kGo:
      went_ = true;
      break;
    default:
      break;
  }
  return absl::OkStatus();
}

std::vector<agent::Agent::FoundChild> KeeperLink::TakeChildren() {
  std::vector<agent::Agent::FoundChild> children;
  for (auto& [number, child] : std::exchange(children_, {})) children.push_back(std::move(child));
  return children;
}

std::vector<ipc::Descriptor> KeeperLink::TakeKept(uint32_t slot) {
  return std::exchange(kept_[slot], {});
}

void KeeperLink::Begin(ipc::EventLoop& loop, Events events) {
  loop_ = &loop;
  events_ = std::move(events);
  turn_.emplace(loop, [this] { HearAll(); });
  watch_.emplace(loop, socket_.get(), [this](int) {
    ReceiveAll();
    HearAll();
  });
  watch_->Reference(false);
  watch_->Want(ipc::Watch::kReadable);
  heartbeat_.emplace(loop);
  Beat();
}

void KeeperLink::Beat() {
  auto* const file = static_cast<keeper::AgentFile*>(file_);
  __atomic_store_n(&file->heartbeat, file->heartbeat + 1, __ATOMIC_RELEASE);
  heartbeat_->Start(
      kHeartbeat, [this] { Beat(); }, /*referenced=*/false);
}

void KeeperLink::Ready() {
  if (std::exchange(ready_, true)) return;
  Send({.type = Type::kReady,
        .id = agent::AgentMemory::kVersion,
        .number = keeper::kProtocolVersion});
}

void KeeperLink::KeepForSuccessors(uint32_t slot, const std::vector<int>& descriptors) {
  Send({.type = Type::kKeep, .id = slot}, descriptors);
}

void KeeperLink::Upgrade(int program) {
  if (program < 0) {
    Send({.type = Type::kUpgrade});
  } else {
    Send({.type = Type::kUpgrade, .detail = 1}, {program});
  }
}

spawn::Started KeeperLink::Start(uint64_t number, const spawn::Options& options, const Held& held) {
  spawn::Started failed;
  failed.failed_step = spawn::Step::kStart;
  Message message = {.type = Type::kSpawn, .id = number};
  std::vector<int> descriptors;
  const ipc::Descriptor spec = SpecFile(options).Make();
  if (!spec.valid()) {
    failed.error = errno;
    return failed;
  }
  descriptors.push_back(spec.get());
  const auto hold = [&](uint32_t bit, int descriptor) {
    if (descriptor < 0) return;
    message.detail |= bit;
    descriptors.push_back(descriptor);
  };
  hold(keeper::kMemory, held.memory);
  hold(keeper::kChannel, held.channel);
  hold(keeper::kStdout, held.output[0]);
  hold(keeper::kStderr, held.output[1]);
  for (size_t i = 0; i < options.descriptors_count; ++i) {
    descriptors.push_back(options.descriptors[i].from);
  }
  failed.error = EPIPE;  // the keeper is gone
  if (!Send(message, descriptors)) return failed;
  for (;;) {
    Packet packet;
    if (!Receive(0, packet)) return failed;
    const Message& answer = packet.message;
    if (answer.type != Type::kSpawned || answer.id != number) {
      Defer(packet);
      continue;
    }
    spawn::Started started;
    started.failed_step = static_cast<spawn::Step>(answer.detail);
    started.error = answer.status;
    started.pid = answer.pid;
    started.pidfd = packet.count == 1 ? packet.descriptors[0] : -1;
    return started;
  }
}

void KeeperLink::OnEnd(uint64_t number, Ended ended) {
  if (ended == nullptr) {
    on_end_.erase(number);
    return;
  }
  on_end_[number] = std::move(ended);
  if (gone_ || ended_.contains(number)) {
    loop_->Post([this, number] { TellEnd(number); });
  }
}

void KeeperLink::TellEnd(uint64_t number) {
  const auto found = on_end_.find(number);
  if (found == on_end_.end()) return;
  const auto status = ended_.find(number);
  if (status == ended_.end() && !gone_) return;
  Ended ended = std::move(found->second);
  on_end_.erase(found);
  if (status == ended_.end()) return ended(std::nullopt);
  const int wait_status = status->second;
  ended_.erase(status);
  ended(wait_status);
}

void KeeperLink::Acknowledge(uint64_t number) { Send({.type = Type::kAcknowledge, .id = number}); }
void KeeperLink::Release(uint64_t number) { Send({.type = Type::kRelease, .id = number}); }
void KeeperLink::Forget(uint64_t number) { Send({.type = Type::kForget, .id = number}); }

bool KeeperLink::Send(const Message& message, const std::vector<int>& descriptors) {
  while (!gone_) {
    const int error = keeper::SendPacket(socket_.get(), MSG_DONTWAIT, message, descriptors.data(),
                                         descriptors.size());
    if (error == 0) return true;
    if (error == EPIPE) {
      // What it said before its end comes first.
      ReceiveAll();
      return false;
    }
    if (error != EAGAIN && error != ETOOMANYREFS) return false;
    // The keeper may be waiting for its own words to be read.
    pollfd ready = {.fd = socket_.get(), .events = POLLIN | POLLOUT, .revents = 0};
    poll(&ready, 1, error == EAGAIN ? -1 : 10);
    if (Packet packet; (ready.revents & POLLIN) && Receive(MSG_DONTWAIT, packet)) Defer(packet);
  }
  return false;
}

void KeeperLink::Defer(const Packet& packet) {
  for (size_t i = 0; i < packet.count; ++i) close(packet.descriptors[i]);
  heard_.push_back(packet.message);
  if (turn_) turn_->Schedule();
}

bool KeeperLink::Receive(int flags, Packet& packet) {
  if (gone_) return false;
  // The loop has made the socket non-blocking.
  pollfd ready = {.fd = socket_.get(), .events = POLLIN, .revents = 0};
  for (;;) {
    switch (keeper::ReceivePacket(socket_.get(), MSG_DONTWAIT, packet)) {
      case Received::kPacket:
        return true;
      case Received::kNothing:
        if (flags & MSG_DONTWAIT) return false;
        poll(&ready, 1, -1);
        break;
      case Received::kNoise:
        for (size_t i = 0; i < packet.count; ++i) close(packet.descriptors[i]);
        break;
      case Received::kEnd:
        Lose();
        return false;
    }
  }
}

void KeeperLink::ReceiveAll() {
  for (Packet packet; Receive(MSG_DONTWAIT, packet);) Defer(packet);
}

void KeeperLink::HearAll() {
  for (const Message& message : std::exchange(heard_, {})) Hear(message);
}

void KeeperLink::Hear(const Message& message) {
  switch (message.type) {
    case Type::kExited:
      ended_[message.id] = message.status;
      return TellEnd(message.id);
    case Type::kStop:
      return events_.on_stop(message.status);
    case Type::kSpare:
      return events_.on_spare(message.pid);
    case Type::kRefused:
      return events_.on_refused(message.detail);
    default:
      return;
  }
}

void KeeperLink::Lose() {
  gone_ = true;
  if (loop_ == nullptr) return;
  if (watch_) watch_->Want(ipc::Watch::kNone);
  loop_->Post([this] {
    HearAll();
    std::vector<uint64_t> numbers;
    for (const auto& [number, ended] : on_end_) numbers.push_back(number);
    for (const uint64_t number : numbers) TellEnd(number);
    events_.on_gone();
  });
}

}  // namespace deka::server
