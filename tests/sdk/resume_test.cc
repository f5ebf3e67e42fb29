// The SDK's client and deka-agent itself, with connections between them that break.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
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
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "ipc/mutex.h"
#include "sdk/cpp/client.h"

namespace deka {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr seconds kDeadline{30};

sockaddr_un AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  return address;
}

int OpenSocket() { return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0); }

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

// What callbacks have told, to be waited for.
class Record {
 public:
  void Add(std::string word) {
    ipc::MutexLock lock(mutex_);
    words_.push_back(std::move(word));
    changed_.NotifyAll();
  }

  // Waits until `word` is the last one; all of them.
  std::vector<std::string> AwaitLast(std::string_view word) const {
    const auto deadline = steady_clock::now() + kDeadline;
    ipc::MutexLock lock(mutex_);
    while ((words_.empty() || words_.back() != word) && changed_.WaitUntil(mutex_, deadline)) {
    }
    return words_;
  }

 private:
  mutable ipc::Mutex mutex_;
  mutable ipc::CondVar changed_;
  std::vector<std::string> words_;
};

class ResumeTest : public testing::Test {
 protected:
  ResumeTest() {
    directory_ = "/tmp/deka-resume-XXXXXX";
    if (mkdtemp(directory_.data()) == nullptr) {
      abort();
    }
    StartAgent();
  }

  ~ResumeTest() override {
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

  // Waits until somebody serves `path`.
  static Client Connect(const std::string& path) {
    absl::StatusOr<Client> client = Client::Connect(
        {.target = "unix:" + path, .name = "test", .appear_ms_max = milliseconds(kDeadline)});
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

// Writes 1 to `count`, each as a message.
std::string CountTo(int count) {
  return fmt::format(
      R"(i=0; while [ $i -lt {} ]; do i=$((i+1)); echo "{{\"cmd\":\"NODE_HANDLE\",\"msg\":$i}}"; done >&3)",
      count);
}

// Says everything back.
constexpr char kEcho[] = R"(while IFS= read -r line <&3; do printf '%s\n' "$line" >&3; done)";

TEST_F(ResumeTest, AnObserverSeesEveryEventOnce) {
  constexpr int kMessages = 2000;
  // The first connection breaks before the stream stands, later ones anywhere in it.
  const std::vector<size_t> breaks = {200, 1000, 300, 5'003, 400, 20'011, 601, 30'029};
  const Proxy proxy(proxy_path(), agent_path(), breaks);
  Child child = ForkShell(Connect(agent_path()), CountTo(kMessages));
  Client client = Connect(proxy_path());

  v1::ObserveRequest request;
  request.mutable_filter()->add_children(child.name());
  request.mutable_observation()->mutable_start()->set_earliest(true);
  request.mutable_observation()->set_until_closed(true);
  Record record;
  int64_t last = 0;
  Observer observer;
  observer.on_event = [&](const v1::Event& event) {
    EXPECT_EQ(event.child_sequence(), ++last);
    if (event.has_from_child()) {
      record.Add(event.json());
    }
  };
  observer.on_gap = [](const v1::Gap& gap) { ADD_FAILURE() << gap.ShortDebugString(); };
  observer.on_end = [&](const absl::Status& status, const v1::Fin& fin) {
    EXPECT_TRUE(status.ok()) << status;
    record.Add(v1::Fin::Reason_Name(fin.reason()));
  };
  const absl::StatusOr<Observation> observation = client.Observe(request, observer);
  ASSERT_TRUE(observation.ok()) << observation.status();

  std::vector<std::string> expected;
  for (int i = 1; i <= kMessages; ++i) {
    expected.push_back(std::to_string(i));
  }
  expected.push_back("REASON_CLOSED");
  EXPECT_EQ(record.AwaitLast("REASON_CLOSED"), expected);
  EXPECT_EQ(proxy.broken(), breaks.size());
}

TEST_F(ResumeTest, AChildGetsEverySendOnce) {
  constexpr int kSends = 20;
  // So little that answers are lost.
  const std::vector<size_t> breaks = {150, 170, 190, 210, 230, 250, 270, 290, 310, 330};
  const Proxy proxy(proxy_path(), agent_path(), breaks);
  Client direct = Connect(agent_path());
  Child child = ForkShell(direct, kEcho);
  Record record;
  ASSERT_TRUE(
      child
          .Listen({.on_message = [&](std::string_view json) { record.Add(std::string(json)); },
                   .on_gap = [](const v1::Gap& gap) { ADD_FAILURE() << gap.DebugString(); }})
          .ok());

  absl::StatusOr<Child> found = Connect(proxy_path()).Find(child.id());
  ASSERT_TRUE(found.ok()) << found.status();
  std::vector<std::string> expected;
  for (int i = 1; i <= kSends; ++i) {
    expected.push_back(std::to_string(i));
    const auto sent = found->Send(expected.back());
    EXPECT_TRUE(sent.ok()) << sent.status();
  }
  EXPECT_EQ(record.AwaitLast(expected.back()), expected);
  EXPECT_EQ(proxy.broken(), breaks.size());
}

TEST_F(ResumeTest, AnAttachmentSendsEachOnceInOrderOrSaysSo) {
  constexpr int kSends = 3000;
  const std::vector<size_t> breaks = {300, 500, 700, 900, 3'001, 5'003, 20'011, 30'029};
  const Proxy proxy(proxy_path(), agent_path(), breaks);
  Client direct = Connect(agent_path());
  Child child = ForkShell(direct, kEcho);
  Record echoed;
  ASSERT_TRUE(
      child
          .Listen({.on_message = [&](std::string_view json) { echoed.Add(std::string(json)); },
                   .on_gap = [](const v1::Gap& gap) { ADD_FAILURE() << gap.DebugString(); }})
          .ok());

  Attachment::Options options;
  options.observation.emplace();  // what it sends and gets is what breaks the connections
  // Those on their way when a connection breaks are lost with it.
  std::set<int64_t> lost;
  options.on_failed = [&](int64_t number, const absl::Status& status) {
    EXPECT_EQ(ErrorReason(status), "OUTCOME_UNKNOWN") << number;
    lost.insert(number);
  };
  absl::StatusOr<Attachment> attachment = Connect(proxy_path()).Attach(child.id(), options);
  ASSERT_TRUE(attachment.ok()) << attachment.status();
  for (int i = 1; i <= kSends; ++i) {
    ASSERT_TRUE(attachment->Send(std::to_string(i)).ok());
  }
  attachment->Finish();
  const absl::Status end = attachment->Wait();
  EXPECT_TRUE(end.ok()) << end;
  std::vector<std::string> expected;
  for (int i = 1; i <= kSends; ++i) {
    if (!lost.contains(i)) {
      expected.push_back(std::to_string(i));
    }
  }
  EXPECT_EQ(echoed.AwaitLast(expected.back()), expected);
  EXPECT_EQ(proxy.broken(), breaks.size());
}

TEST_F(ResumeTest, ASlowObserverIsToldWhatItMissed) {
  constexpr int kMessages = 20'000;
  v1::ChildLimits limits;
  limits.set_message_bytes_max(1024);
  limits.set_log_bytes_max(80 << 10);
  Client client = Connect(agent_path());
  Child child = ForkShell(client, "read line <&3; " + CountTo(kMessages), limits);

  v1::ObserveRequest request;
  request.mutable_filter()->add_children(child.name());
  request.mutable_observation()->set_until_closed(true);
  request.mutable_observation()->mutable_start()->set_earliest(true);
  Record record;
  int64_t last = 0;
  int64_t missed = 0;
  Observer observer;
  observer.on_event = [&](const v1::Event& event) {
    EXPECT_EQ(event.child_sequence(), last + 1);
    last = event.child_sequence();
    if (last == 3) {
      // Everything else turns over meanwhile.
      const absl::StatusOr<v1::ExitStatus> exited = child.Wait();
      EXPECT_TRUE(exited.ok()) << exited.status();
    }
  };
  observer.on_gap = [&](const v1::Gap& gap) {
    EXPECT_EQ(gap.from_child_sequence(), last + 1) << gap.ShortDebugString();
    missed += gap.to_child_sequence() - last;
    last = gap.to_child_sequence();
  };
  observer.on_end = [&](const absl::Status& status, const v1::Fin&) {
    EXPECT_TRUE(status.ok()) << status;
    record.Add("end");
  };
  const absl::StatusOr<Observation> observation = client.Observe(request, observer);
  ASSERT_TRUE(observation.ok()) << observation.status();
  ASSERT_TRUE(child.Send("1").ok());
  EXPECT_THAT(record.AwaitLast("end"), ElementsAre("end"));
  EXPECT_GT(missed, 0);
  EXPECT_EQ(child.Describe()->last_child_sequence(), last);
}

TEST_F(ResumeTest, AnotherAgentIsAGap) {
  Client client = Connect(agent_path());
  Child before = ForkShell(client, kEcho);
  Record record;
  Observer observer;
  observer.on_event = [&](const v1::Event& event) {
    if (event.has_from_child()) {
      record.Add(event.json());
    }
  };
  observer.on_gap = [&](const v1::Gap& gap) { record.Add(v1::Gap::Reason_Name(gap.reason())); };
  observer.on_lost = [&](const absl::Status&) { record.Add("lost"); };
  const absl::StatusOr<Observation> observation = client.Observe({}, observer);
  ASSERT_TRUE(observation.ok()) << observation.status();
  ASSERT_TRUE(before.Send("1").ok());
  record.AwaitLast("1");

  EXPECT_EQ(EndAgent(SIGKILL), SIGKILL);
  record.AwaitLast("lost");
  StartAgent();
  record.AwaitLast("REASON_OTHER_EPOCH");
  // The client is the one from before.
  EXPECT_EQ(ErrorReason(before.Send("2").status()), "CHILD_NOT_FOUND");
  Child after = ForkShell(client, kEcho);
  ASSERT_TRUE(after.Send("3").ok());
  EXPECT_THAT(record.AwaitLast("3"), ElementsAre("1", "lost", "REASON_OTHER_EPOCH", "3"));
}

}  // namespace
}  // namespace deka
