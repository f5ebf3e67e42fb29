#include "server/listener.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/sockios.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "ipc/error.h"
#include "spdlog/spdlog.h"

namespace deka::server {

using ipc::MakeError;
using ipc::Reason;

namespace {

constexpr int kBacklog = 4096;
constexpr int kLookMs = 5;

// How to make a socket that is safe.
constexpr std::string_view kOwnDirectory = "mkdir -m 700 DIR, --listen unix:DIR/agent.sock";

std::string ErrnoText(int error) { return std::generic_category().message(error); }

absl::Status SystemError(std::string_view what, const std::string& path, int error) {
  return MakeError(Reason::kInternal,
                   fmt::format("Can't {} {}: {}.", what, path, ErrnoText(error)));
}

sockaddr_un UnixAddress(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, path.data(), path.size());
  return address;
}

// Makes the directory if it is missing, and sees that its user alone can open what is in it.
absl::Status SecureDirectory(const std::string& directory) {
  if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return MakeError(Reason::kAddressUnsafe,
                     fmt::format("Can't make the directory {} for the socket: {}. Make it, or name "
                                 "a socket in another one: {}.",
                                 directory, ErrnoText(errno), kOwnDirectory));
  }
  const int descriptor = open(directory.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (descriptor < 0) {
    if (errno == ENOTDIR || errno == ELOOP) {
      return MakeError(Reason::kAddressUnsafe,
                       fmt::format("{} is no directory. Name a socket in one that only you can "
                                   "open: {}.",
                                   directory, kOwnDirectory));
    }
    return SystemError("open the directory", directory, errno);
  }
  const absl::Cleanup closed = [descriptor] { close(descriptor); };
  struct stat status = {};
  if (fstat(descriptor, &status) != 0) {
    return SystemError("look at the directory", directory, errno);
  }
  if (status.st_uid != geteuid()) {
    return MakeError(Reason::kAddressUnsafe,
                     fmt::format("The directory {} belongs to uid {}, not to uid {}. Name a socket "
                                 "in one of your own: {}.",
                                 directory, status.st_uid, geteuid(), kOwnDirectory));
  }
  if ((status.st_mode & 077) != 0) {
    return MakeError(
        Reason::kAddressUnsafe,
        fmt::format("The directory {} can be opened by others (mode {:04o}). chmod 700 "
                    "it, or name a socket in another one: {}.",
                    directory, status.st_mode & 07777, kOwnDirectory));
  }
  return absl::OkStatus();
}

// False with errno.
bool WritePid(int lock, pid_t pid) {
  const std::string line = fmt::format("{}\n", pid);
  return ftruncate(lock, 0) == 0 &&
         pwrite(lock, line.data(), line.size(), 0) == static_cast<ssize_t>(line.size());
}

// What the holder of a lock has written into it: " (pid 4711)".
std::string HolderOf(int lock) {
  char text[32] = {};
  if (pread(lock, text, sizeof(text) - 1, 0) <= 0) return "";
  const long pid = strtol(text, nullptr, 10);
  return pid > 0 ? fmt::format(" (pid {})", pid) : "";
}

// Whether somebody who takes no lock of ours answers at the socket file.
bool IsServed(const sockaddr_un& address) {
  const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (probe < 0) return false;
  const absl::Cleanup closed = [probe] { close(probe); };
  // EAGAIN: its backlog is full.
  return connect(probe, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ||
         errno == EAGAIN;
}

// To a client that is refused: it is not waited for. False: not all of it.
bool Write(int socket, std::string_view bytes) {
  if (bytes.empty()) return true;
  return send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(bytes.size());
}

// For poll, rounded up.
int TimeoutMs(std::chrono::steady_clock::time_point until) {
  if (until == std::chrono::steady_clock::time_point::max()) return -1;
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
  return static_cast<int>(std::clamp<int64_t>(left.count(), 0, INT_MAX));
}

bool OutOfDescriptors(int error) {
  return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

}  // namespace

absl::StatusOr<std::string> SocketPath(std::string_view address) {
  constexpr std::string_view kScheme = "unix:";
  if (!address.starts_with(kScheme)) {
    return MakeError(
        Reason::kInvalidArgument,
        fmt::format("Can't listen on \"{}\": an agent serves Unix sockets only, which its own user "
                    "alone can open. Give unix:PATH, and reach it from elsewhere through "
                    "ssh -L PATH:PATH HOST.",
                    address));
  }
  std::string_view path = address.substr(kScheme.size());
  // gRPC writes an absolute path as unix:///path too.
  if (path.starts_with("///")) path.remove_prefix(2);
  if (path.empty() || path.ends_with('/')) {
    return MakeError(Reason::kInvalidArgument,
                     fmt::format("\"{}\" names no socket. Give unix:PATH, as in "
                                 "unix:/run/deka/agent.sock.",
                                 address));
  }
  if (path.starts_with('@') || path.find('\0') != std::string_view::npos) {
    return MakeError(Reason::kInvalidArgument,
                     fmt::format("Can't listen on \"{}\": an abstract socket has no owner and no "
                                 "mode. Give the path of a file.",
                                 address));
  }
  std::error_code error;
  const std::string absolute = std::filesystem::absolute(path, error).lexically_normal().string();
  if (error) {
    return MakeError(Reason::kInvalidArgument,
                     fmt::format("Can't tell where \"{}\" is: {}.", address, error.message()));
  }
  if (absolute.size() > kSocketPathBytesMax) {
    return MakeError(Reason::kInvalidArgument,
                     fmt::format("{} has {} bytes, and a Unix socket's path at most {}. Name a "
                                 "shorter one.",
                                 absolute, absolute.size(), kSocketPathBytesMax),
                     {{"limit", std::to_string(kSocketPathBytesMax)}});
  }
  return absolute;
}

absl::StatusOr<std::unique_ptr<Listener>> Listener::Open(Options options) {
  std::unique_ptr<Listener> listener(new Listener(std::move(options)));
  for (const std::string& address : listener->options_.addresses) {
    absl::StatusOr<std::string> path = SocketPath(address);
    if (!path.ok()) return path.status();
    if (std::count(listener->paths_.begin(), listener->paths_.end(), *path) > 0) {
      return MakeError(Reason::kInvalidArgument,
                       fmt::format("{} is named twice. Name each socket once.", *path));
    }
    listener->paths_.push_back(*std::move(path));
  }
  for (const std::string& path : listener->paths_) {
    if (absl::Status status = listener->OpenPlace(path); !status.ok()) return status;
  }
  listener->stop_event_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (listener->stop_event_ < 0) return SystemError("make", "an eventfd", errno);
  return listener;
}

Listener::~Listener() {
  Stop();
  if (stop_event_ >= 0) close(stop_event_);
}

bool Listener::TakeHeld(const std::string& path) {
  for (Held& held : options_.held) {
    sockaddr_un address = {};
    socklen_t size = sizeof(address);
    struct stat status = {};
    if (!held.socket.valid() ||
        getsockname(held.socket.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
        path != address.sun_path || lstat(path.c_str(), &status) != 0) {
      continue;
    }
    places_.push_back({.path = path,
                       .lock = held.lock.Release(),
                       .socket = held.socket.Release(),
                       .device = status.st_dev,
                       .inode = status.st_ino});
    return true;
  }
  return false;
}

void Listener::SetPid(pid_t pid) {
  // Who finds an old number there is told of the wrong process, and no more.
  for (const Place& place : places_) (void)WritePid(place.lock, pid);
}

std::vector<std::pair<int, int>> Listener::descriptors() const {
  std::vector<std::pair<int, int>> descriptors;
  for (const Place& place : places_) descriptors.emplace_back(place.lock, place.socket);
  return descriptors;
}

absl::Status Listener::OpenPlace(const std::string& path) {
  if (TakeHeld(path)) return absl::OkStatus();
  const std::string directory = std::filesystem::path(path).parent_path().string();
  if (absl::Status status = SecureDirectory(directory); !status.ok()) return status;

  Place& place = places_.emplace_back();
  place.path = path;
  const std::string lock = path + ".lock";
  place.lock = open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (place.lock < 0) return SystemError("open", lock, errno);
  if (flock(place.lock, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return SystemError("lock", lock, errno);
    return MakeError(Reason::kAddressInUse,
                     fmt::format("Another agent{} serves {}. Stop that one, or name another socket "
                                 "with --listen.",
                                 HolderOf(place.lock), path));
  }
  if (!WritePid(place.lock, options_.pid)) return SystemError("write", lock, errno);

  const sockaddr_un address = UnixAddress(path);
  struct stat status = {};
  if (lstat(path.c_str(), &status) == 0) {
    if (!S_ISSOCK(status.st_mode)) {
      return MakeError(Reason::kAddressInUse,
                       fmt::format("{} is there and is no socket. Remove it, or name another one "
                                   "with --listen.",
                                   path));
    }
    if (IsServed(address)) {
      return MakeError(
          Reason::kAddressInUse,
          fmt::format("Another program serves {}. Stop it, or name another socket with "
                      "--listen.",
                      path));
    }
    if (unlink(path.c_str()) != 0) return SystemError("remove the stale", path, errno);
  }

  place.socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (place.socket < 0) return SystemError("make", "a socket", errno);
  // The file gets the socket's mode: it is never open to others, not for a moment.
  if (fchmod(place.socket, 0600) != 0 ||
      bind(place.socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(place.socket, kBacklog) != 0) {
    return SystemError("listen on", path, errno);
  }
  if (lstat(path.c_str(), &status) != 0) return SystemError("look at", path, errno);
  place.device = status.st_dev;
  place.inode = status.st_ino;
  return absl::OkStatus();
}

void Listener::Start(absl::AnyInvocable<void(int socket)> take) {
  take_ = std::move(take);
  thread_ = std::thread([this] { Run(); });
}

void Listener::Stop() {
  if (thread_.joinable()) {
    (void)eventfd_write(stop_event_, 1);
    thread_.join();
  }
  for (const Place& place : places_) {
    struct stat status = {};
    if (place.inode != 0 && lstat(place.path.c_str(), &status) == 0 &&
        status.st_dev == place.device && status.st_ino == place.inode) {
      unlink(place.path.c_str());
    }
    if (place.socket >= 0) close(place.socket);
    if (place.lock >= 0) close(place.lock);
  }
  places_.clear();
  for (const Refused& refused : refused_) close(refused.socket);
  refused_.clear();
}

void Listener::Run() {
  pthread_setname_np(pthread_self(), "deka-listener");
  std::optional<Clock::time_point> paused_until;
  std::vector<pollfd> waiting;
  for (;;) {
    // poll takes no notice of a negative descriptor.
    waiting.assign(1, {stop_event_, POLLIN, 0});
    for (const Place& place : places_) {
      waiting.push_back({paused_until ? -1 : place.socket, POLLIN, 0});
    }
    for (const Refused& refused : refused_) waiting.push_back({refused.socket, POLLIN, 0});
    auto until = Clock::time_point::max();
    if (paused_until) until = *paused_until;
    for (const Refused& refused : refused_) until = std::min(until, refused.until);
    if (poll(waiting.data(), waiting.size(), TimeoutMs(until)) < 0) {
      // But for a signal, the system has no memory for it now.
      if (errno != EINTR) std::this_thread::sleep_for(options_.pause_ms);
      continue;
    }
    if (waiting[0].revents != 0) return;

    const Clock::time_point now = Clock::now();
    auto ready = waiting.begin() + 1 + static_cast<ptrdiff_t>(places_.size());
    for (auto refused = refused_.begin(); refused != refused_.end(); ++ready) {
      const bool stays =
          (ready->revents == 0 || Answer(*refused)) && (now < refused->until || Dismiss(*refused));
      refused = stays ? std::next(refused) : refused_.erase(refused);
    }

    if (paused_until && now < *paused_until) continue;
    const bool was_paused = std::exchange(paused_until, std::nullopt).has_value();
    bool descriptors_left = true;
    for (size_t i = 0; i < places_.size() && descriptors_left; ++i) {
      if (was_paused || waiting[1 + i].revents != 0) descriptors_left = Accept(places_[i].socket);
    }
    if (descriptors_left) continue;
    paused_until = Clock::now() + options_.pause_ms;
    if (!was_paused) {
      ++counts_.pauses;
      spdlog::warn(
          "No descriptor is left, so clients that connect wait. Raise the limit (ulimit -n), or "
          "lower connections_max or children_max.");
    }
  }
}

bool Listener::Accept(int listening) {
  // Bounded, so that one busy socket does not keep the others and the end waiting.
  for (int i = 0; i < 64; ++i) {
    const int socket = accept4(listening, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (socket >= 0) {
      Take(socket);
    } else if (OutOfDescriptors(errno)) {
      return false;
    } else if (errno != EINTR && errno != ECONNABORTED) {
      return true;  // EAGAIN
    }
  }
  return true;
}

void Listener::Take(int socket) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.uid != options_.user) {
    ++counts_.refused_user;
    spdlog::warn("A connection of uid {} (pid {}) was refused: only uid {} may connect.", peer.uid,
                 peer.pid, options_.user);
    return Refuse(socket, absl::PermissionDeniedError(fmt::format(
                              "This agent serves uid {} only, and you are uid {}. Connect as its "
                              "user.",
                              options_.user, peer.uid)));
  }
  if (!HasRoom()) {
    ++counts_.refused_limit;
    return Refuse(socket,
                  MakeError(Reason::kConnectionsLimit,
                            fmt::format("The agent has as many connections as it may have: {} "
                                        "(connections_max). Close one, or raise the limit.",
                                        options_.connections_max),
                            {{"limit", fmt::format("{}", options_.connections_max)}}));
  }
  struct stat status = {};
  if (fstat(socket, &status) == 0) connections_.push_back({socket, status.st_dev, status.st_ino});
  ++counts_.accepted;
  take_(socket);
}

void Listener::Refuse(int socket, const absl::Status& why) {
  if (refused_.size() >= options_.refusals_max) EndOldestRefusal();
  Write(socket, Refusal::Begin());
  refused_.push_back({socket, Refusal(why), Clock::now() + options_.refusal_ms_max});
}

bool Listener::Answer(Refused& refused) {
  char buffer[16 << 10];
  const ssize_t count = recv(refused.socket, buffer, sizeof(buffer), MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (count > 0) {
    // What comes after the end is read all the same: a client that can't write does not look at
    // what it has been told.
    const bool wrote = Write(
        refused.socket, refused.refusal.Take(std::string_view(buffer, static_cast<size_t>(count))));
    if (refused.refusal.ended()) shutdown(refused.socket, SHUT_WR);
    if (wrote) return true;
  }
  close(refused.socket);
  return false;
}

bool Listener::Dismiss(Refused& refused) {
  if (!std::exchange(refused.asked_to_leave, true)) {
    const bool wrote = Write(refused.socket, refused.refusal.AskToLeave());
    if (refused.refusal.ended()) shutdown(refused.socket, SHUT_WR);
    refused.until = Clock::now() + options_.refusal_ms_max;
    if (wrote) return true;
  } else {
    Write(refused.socket, refused.refusal.End());
  }
  close(refused.socket);
  return false;
}

void Listener::EndOldestRefusal() {
  Refused& oldest = refused_.front();
  Write(oldest.socket, oldest.refusal.End());
  close(oldest.socket);
  refused_.pop_front();
}

bool Listener::HasRoom() {
  if (connections_.size() >= options_.connections_max) ForgetEnded();
  return connections_.size() < options_.connections_max;
}

void Listener::ForgetEnded() {
  std::erase_if(connections_, [](const Connection& connection) {
    struct stat status = {};
    return fstat(connection.socket, &status) != 0 || status.st_dev != connection.device ||
           status.st_ino != connection.inode;
  });
}

void Listener::WaitUntilRead(std::chrono::steady_clock::time_point deadline) {
  // gRPC may still be about to write, so once is not enough.
  for (int looks = 0; looks < 2 && std::chrono::steady_clock::now() < deadline;) {
    ForgetEnded();
    const bool read =
        std::all_of(connections_.begin(), connections_.end(), [](const Connection& c) {
          int unread = 0;
          return ioctl(c.socket, SIOCOUTQ, &unread) != 0 || unread == 0;
        });
    looks = read ? looks + 1 : 0;
    poll(nullptr, 0, kLookMs);
  }
}

}  // namespace deka::server
