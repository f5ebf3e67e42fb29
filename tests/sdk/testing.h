// deka-agent itself, its children, and connections that break, for tests of the SDK's client.
#ifndef TESTS_SDK_TESTING_H_
#define TESTS_SDK_TESTING_H_

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <list>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "ipc/mutex.h"
#include "sdk/cpp/client.h"
#include "sdk/cpp/testing.h"

namespace deka {

inline sockaddr_un AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  return address;
}

inline int OpenSocket() { return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0); }

// Lies between client and agent, and breaks connections: the i-th once the agent has sent
// `bytes_max[i]` on it. Those after the last one hold.
class Proxy {
 public:
  Proxy(const std::string& path, std::string agent, std::vector<size_t> bytes_max)
      : agent_(std::move(agent)), bytes_max_(std::move(bytes_max)) {
    const sockaddr_un address = AddressOf(path);
    if (bind(listener_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
        listen(listener_, SOMAXCONN) != 0) {
      abort();
    }
    thread_ = std::thread([this] { Run(); });
  }

  ~Proxy() {
    eventfd_write(stop_, 1);
    thread_.join();
    for (const Pair& pair : pairs_) {
      close(pair.client);
      close(pair.agent);
    }
    close(listener_);
    close(stop_);
  }

  // How many connections it has broken.
  size_t broken() const {
    ipc::MutexLock lock(mutex_);
    return broken_;
  }

 private:
  struct Pair {
    int client;
    int agent;
    std::optional<size_t> left;  // bytes that may still come from the agent
  };

  // Moves what is there; false if the connection has ended or is to break.
  static bool Move(int from, int to, std::optional<size_t>* left) {
    std::array<char, 4096> buffer;
    size_t room = buffer.size();
    if (left != nullptr && left->has_value()) {
      room = std::min(room, **left);
    }
    const ssize_t got = read(from, buffer.data(), room);
    for (ssize_t done = 0; done < got;) {
      const ssize_t put =
          send(to, buffer.data() + done, static_cast<size_t>(got - done), MSG_NOSIGNAL);
      if (put < 0) {
        return false;
      }
      done += put;
    }
    if (got > 0 && left != nullptr && left->has_value()) {
      **left -= static_cast<size_t>(got);
      return **left > 0;
    }
    return got > 0;
  }

  void Accept() {
    Pair pair = {accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC), OpenSocket(), std::nullopt};
    if (accepted_ < bytes_max_.size()) {
      pair.left = bytes_max_[accepted_++];
    }
    const sockaddr_un address = AddressOf(agent_);
    if (connect(pair.agent, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
      pairs_.push_back(pair);
    } else {
      close(pair.client);
      close(pair.agent);
    }
  }

  void Run() {
    for (;;) {
      std::vector<pollfd> polled = {{stop_, POLLIN, 0}, {listener_, POLLIN, 0}};
      for (const Pair& pair : pairs_) {
        polled.push_back({pair.client, POLLIN, 0});
        polled.push_back({pair.agent, POLLIN, 0});
      }
      poll(polled.data(), polled.size(), -1);
      if (polled[0].revents != 0) {
        return;
      }
      size_t i = 2;
      for (auto pair = pairs_.begin(); pair != pairs_.end(); i += 2) {
        const bool goes_on =
            (polled[i].revents == 0 || Move(pair->client, pair->agent, nullptr)) &&
            (polled[i + 1].revents == 0 || Move(pair->agent, pair->client, &pair->left));
        if (goes_on) {
          ++pair;
          continue;
        }
        if (pair->left == 0u) {
          ipc::MutexLock lock(mutex_);
          ++broken_;
        }
        close(pair->client);
        close(pair->agent);
        pair = pairs_.erase(pair);
      }
      if (polled[1].revents != 0) {
        Accept();
      }
    }
  }

  const std::string agent_;
  const std::vector<size_t> bytes_max_;
  const int listener_ = OpenSocket();
  const int stop_ = eventfd(0, EFD_CLOEXEC);
  std::list<Pair> pairs_;
  size_t accepted_ = 0;
  std::thread thread_;
  mutable ipc::Mutex mutex_;
  size_t broken_ ABSL_GUARDED_BY(mutex_) = 0;
};

// An agent of its own for each test, on a socket in a fresh directory.
class AgentTest : public testing::Test {
 protected:
  AgentTest() {
    directory_ = "/tmp/deka-sdk-XXXXXX";
    if (mkdtemp(directory_.data()) == nullptr) {
      abort();
    }
    StartAgent();
  }

  ~AgentTest() override {
    EXPECT_EQ(EndAgent(SIGTERM), 0);
    std::filesystem::remove_all(directory_);
  }

  std::string agent_path() const { return directory_ + "/agent.sock"; }
  std::string proxy_path() const { return directory_ + "/proxy.sock"; }

  void StartAgent() {
    const std::string listen = "unix:" + agent_path();
    const char* const arguments[] = {getenv("DEKA_AGENT"), "--listen", listen.c_str(), nullptr};
    ASSERT_EQ(posix_spawn(&pid_, arguments[0], nullptr, nullptr,
                          const_cast<char* const*>(arguments), environ),
              0)
        << "DEKA_AGENT names the agent's program";
  }

  // Its exit code, or the signal that ended it.
  int EndAgent(int signal) {
    kill(pid_, signal);
    int status = 0;
    waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status);
  }

  // Nobody is left to go on: keeper, agent and spare are gone when it returns.
  void KillAll(const Client& client) {
    const absl::StatusOr<v1::Agent> agent = client.GetAgent();
    ASSERT_TRUE(agent.ok()) << agent.status();
    const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, agent->pid(), 0));
    ASSERT_GE(pidfd, 0);
    EXPECT_EQ(EndAgent(SIGKILL), SIGKILL);
    kill(agent->pid(), SIGKILL);
    pollfd ended = {pidfd, POLLIN, 0};
    EXPECT_EQ(poll(&ended, 1, static_cast<int>(std::chrono::milliseconds(kDeadline).count())), 1);
    close(pidfd);
  }

  // Waits until somebody serves `path`.
  static Client Connect(const std::string& path) {
    absl::StatusOr<Client> client =
        Client::Connect({.target = "unix:" + path,
                         .name = "test",
                         .appear_ms_max = std::chrono::milliseconds(kDeadline)});
    if (!client.ok()) {
      ADD_FAILURE() << client.status();
      abort();
    }
    return *client;
  }

  // A shell as a child on the deka dialect.
  static Child ForkShell(const Client& client, const std::string& script,
                         v1::ChildLimits limits = {}) {
    absl::StatusOr<v1::ChildSpec> spec = SpecOf("/bin/sh", {"-c", script});
    *spec->mutable_limits() = limits;
    absl::StatusOr<Child> child = client.Fork(*std::move(spec));
    if (!child.ok()) {
      ADD_FAILURE() << child.status();
      abort();
    }
    return *std::move(child);
  }

  std::string directory_;
  pid_t pid_ = 0;
};

// Says everything back.
inline constexpr char kEcho[] =
    R"(while IFS= read -r line <&3; do printf '%s\n' "$line" >&3; done)";

}  // namespace deka

#endif  // TESTS_SDK_TESTING_H_
