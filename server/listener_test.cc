#include "server/listener.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ipc/error.h"

namespace deka::server {
namespace {

using ipc::Reason;

constexpr int kLimitMs = 30'000;

std::string TextOf(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

mode_t ModeOf(const std::string& path) {
  struct stat status = {};
  return lstat(path.c_str(), &status) == 0 ? status.st_mode & 07777 : 0;
}

constexpr char kHeaders = 1, kSettings = 4, kGoAway = 7;
constexpr size_t kFrameHeaderBytes = 9;
const std::string kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// What a test looks at of a frame of HTTP/2.
struct Frame {
  char type = 0;
  uint32_t stream = 0;
  uint32_t last_stream = 0;  // of GOAWAY

  bool operator==(const Frame&) const = default;
};

void PrintTo(const Frame& frame, std::ostream* out) {
  *out << "type " << int{frame.type} << " of " << frame.stream << ", last " << frame.last_stream;
}

uint32_t Number(std::string_view bytes) {
  uint32_t number = 0;
  for (const char byte : bytes) number = number << 8 | static_cast<unsigned char>(byte);
  return number;
}

// A client's, empty, of a stream below 128.
std::string HeadersOf(char stream) { return {0, 0, 0, kHeaders, 0, 0, 0, 0, stream}; }

// A descriptor of the test's own.
class Socket {
 public:
  explicit Socket(int socket) : socket_(socket) {}
  Socket(Socket&& other) noexcept : socket_(std::exchange(other.socket_, -1)) {}
  ~Socket() { Close(); }

  static Socket Unix() { return Socket(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)); }

  int get() const { return socket_; }
  void Close() {
    if (socket_ >= 0) close(std::exchange(socket_, -1));
  }

  [[nodiscard]] bool Connect(const std::string& path) const {
    const sockaddr_un address = Address(path);
    return connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  }
  [[nodiscard]] bool Bind(const std::string& path) const {
    const sockaddr_un address = Address(path);
    return bind(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  }

  void Write(const std::string& bytes) const {
    EXPECT_EQ(send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }

  // The next frames of HTTP/2; fewer if the other end closes before.
  std::vector<Frame> ReadFrames(size_t count) const {
    std::vector<Frame> frames;
    while (frames.size() < count) {
      const std::string header = Read(kFrameHeaderBytes);
      if (header.size() < kFrameHeaderBytes) break;
      Frame frame = {header[3], Number(header.substr(5))};
      const std::string payload = Read(Number(header.substr(0, 3)));
      if (frame.type == kGoAway) frame.last_stream = Number(payload.substr(0, 4));
      frames.push_back(frame);
    }
    return frames;
  }

  // All that comes until the other end closes.
  std::string ReadAll() const {
    std::string all;
    char buffer[4096];
    for (;;) {
      pollfd wait = {socket_, POLLIN, 0};
      if (poll(&wait, 1, kLimitMs) <= 0) return all + " (no end)";
      const ssize_t count = read(socket_, buffer, sizeof(buffer));
      if (count <= 0) return all;
      all.append(buffer, static_cast<size_t>(count));
    }
  }

 private:
  // So many bytes; fewer if no more come.
  std::string Read(size_t size) const {
    std::string bytes(size, '\0');
    size_t count = 0;
    while (count < size) {
      pollfd wait = {socket_, POLLIN, 0};
      if (poll(&wait, 1, kLimitMs) <= 0) break;
      const ssize_t more = read(socket_, bytes.data() + count, size - count);
      if (more <= 0) break;
      count += static_cast<size_t>(more);
    }
    bytes.resize(count);
    return bytes;
  }

  static sockaddr_un Address(const std::string& path) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, path.data(), path.size());
    return address;
  }

  int socket_;
};

class ListenerTest : public ::testing::Test {
 protected:
  ~ListenerTest() override { std::filesystem::remove_all(root_); }

  absl::StatusOr<std::unique_ptr<Listener>> Open(const std::string& path,
                                                 size_t connections_max = 10) const {
    return Listener::Open({.addresses = {"unix:" + path},
                           .connections_max = connections_max,
                           .user = geteuid(),
                           .refusal_ms_max = std::chrono::milliseconds(50),
                           .pause_ms = std::chrono::milliseconds(1)});
  }

  // Opens one that refuses everybody, and gives them time.
  std::unique_ptr<Listener> RefuseAll(size_t refusals_max) const {
    auto listener = Listener::Open({.addresses = {"unix:" + path_},
                                    .connections_max = 0,
                                    .user = geteuid(),
                                    .refusals_max = refusals_max,
                                    .refusal_ms_max = std::chrono::milliseconds(10 * kLimitMs)});
    EXPECT_TRUE(listener.ok()) << listener.status();
    return listener.ok() ? *std::move(listener) : nullptr;
  }

  // Opens one that must open.
  std::unique_ptr<Listener> Listen(size_t connections_max = 10) const {
    auto listener = Open(path_, connections_max);
    EXPECT_TRUE(listener.ok()) << listener.status();
    return listener.ok() ? *std::move(listener) : nullptr;
  }

  void Start(Listener& listener) {
    listener.Start([this](int socket) {
      const std::lock_guard lock(mutex_);
      taken_.emplace_back(socket);
      changed_.notify_all();
    });
  }

  [[nodiscard]] bool WaitForTaken(size_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::milliseconds(kLimitMs),
                             [&] { return taken_.size() >= count; });
  }

  const std::string root_ = [] {
    char path[] = "/tmp/deka-listener-test-XXXXXX";
    return std::string(mkdtemp(path));
  }();
  const std::string directory_ = root_ + "/deka";
  const std::string path_ = directory_ + "/a.sock";

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Socket> taken_;
};

TEST(SocketPath, IsAbsolute) {
  EXPECT_EQ(*SocketPath("unix:/a/b"), "/a/b");
  EXPECT_EQ(*SocketPath("unix:///a/b"), "/a/b");
  EXPECT_EQ(*SocketPath("unix:/a/../c"), "/c");
  std::filesystem::current_path("/tmp");
  EXPECT_EQ(*SocketPath("unix:b"), "/tmp/b");
}

TEST(SocketPath, RefusesEverythingElseAndSaysWhatToDo) {
  for (const char* address : {"0.0.0.0:80", "localhost:1", "tcp:1.2.3.4:5", "dns:///x", "", "/a/b",
                              "vsock:1:2", "UNIX:/a", "unix-abstract:a"}) {
    const auto path = SocketPath(address);
    EXPECT_EQ(ipc::ReasonOf(path.status()), Reason::kInvalidArgument) << address;
    EXPECT_NE(TextOf(path.status()).find("Give unix:PATH"), std::string::npos) << path.status();
  }
  EXPECT_NE(TextOf(SocketPath("unix:@a").status()).find("abstract"), std::string::npos);
  EXPECT_NE(TextOf(SocketPath("unix:").status()).find("names no socket"), std::string::npos);
  EXPECT_NE(TextOf(SocketPath("unix:/a/").status()).find("names no socket"), std::string::npos);
}

TEST(SocketPath, HoldsWhatASocketsAddressHolds) {
  const std::string longest = "/" + std::string(kSocketPathBytesMax - 1, 'x');
  EXPECT_EQ(*SocketPath("unix:" + longest), longest);
  const auto longer = SocketPath("unix:" + longest + "x");
  EXPECT_EQ(ipc::ReasonOf(longer.status()), Reason::kInvalidArgument);
  EXPECT_EQ(ipc::MetadataOf(longer.status(), "limit"), "107");
}

TEST_F(ListenerTest, MakesADirectoryAndASocketForItsUserAlone) {
  const auto listener = Listen();
  ASSERT_NE(listener, nullptr);
  EXPECT_EQ(listener->paths(), std::vector<std::string>{path_});
  EXPECT_EQ(ModeOf(directory_), 0700u);
  EXPECT_EQ(ModeOf(path_), 0600u);
  EXPECT_EQ(ModeOf(path_ + ".lock"), 0600u);
}

TEST_F(ListenerTest, GivesConnectionsAway) {
  const auto listener = Listen();
  const Socket early = Socket::Unix();
  ASSERT_TRUE(early.Connect(path_));
  Start(*listener);
  const Socket late = Socket::Unix();
  ASSERT_TRUE(late.Connect(path_));
  ASSERT_TRUE(WaitForTaken(2));
  EXPECT_EQ(listener->counts().accepted, 2u);
  ASSERT_EQ(write(early.get(), "x", 1), 1);
}

TEST_F(ListenerTest, ServesSeveralSockets) {
  auto listener = Listener::Open(
      {.addresses = {"unix:" + path_, "unix:" + root_ + "/b.sock"}, .user = geteuid()});
  ASSERT_TRUE(listener.ok()) << listener.status();
  Start(**listener);
  for (const std::string& path : (*listener)->paths()) {
    ASSERT_TRUE(Socket::Unix().Connect(path));
  }
  EXPECT_TRUE(WaitForTaken(2));
}

TEST_F(ListenerTest, RefusesASocketThatIsNamedTwice) {
  const auto listener = Listener::Open(
      {.addresses = {"unix:" + path_, "unix:" + directory_ + "/./a.sock"}, .user = geteuid()});
  EXPECT_EQ(ipc::ReasonOf(listener.status()), Reason::kInvalidArgument);
}

TEST_F(ListenerTest, RefusesASocketThatIsServedAndNamesWhoServesIt) {
  const auto first = Listen();
  const auto second = Open(path_);
  EXPECT_EQ(ipc::ReasonOf(second.status()), Reason::kAddressInUse);
  EXPECT_NE(TextOf(second.status()).find("(pid " + std::to_string(getpid()) + ")"),
            std::string::npos)
      << second.status();
  // The first one is none the worse for it.
  EXPECT_TRUE(Socket::Unix().Connect(path_));
}

TEST_F(ListenerTest, TakesOverASocketThatWasLeftBehind) {
  ASSERT_EQ(mkdir(directory_.c_str(), 0700), 0);
  Socket dead = Socket::Unix();
  ASSERT_TRUE(dead.Bind(path_));
  dead.Close();
  ASSERT_FALSE(Socket::Unix().Connect(path_));
  const auto listener = Listen();
  ASSERT_NE(listener, nullptr);
  EXPECT_TRUE(Socket::Unix().Connect(path_));
}

TEST_F(ListenerTest, LeavesASocketThatAnotherProgramServes) {
  ASSERT_EQ(mkdir(directory_.c_str(), 0700), 0);
  const Socket other = Socket::Unix();
  ASSERT_TRUE(other.Bind(path_));
  ASSERT_EQ(listen(other.get(), 1), 0);
  const auto listener = Open(path_);
  EXPECT_EQ(ipc::ReasonOf(listener.status()), Reason::kAddressInUse);
  EXPECT_TRUE(Socket::Unix().Connect(path_));
}

TEST_F(ListenerTest, LeavesAFileThatIsNoSocket) {
  ASSERT_EQ(mkdir(directory_.c_str(), 0700), 0);
  std::ofstream(path_) << "precious";
  EXPECT_EQ(ipc::ReasonOf(Open(path_).status()), Reason::kAddressInUse);
  EXPECT_TRUE(std::filesystem::is_regular_file(path_));
}

TEST_F(ListenerTest, RefusesADirectoryThatOthersCanOpen) {
  ASSERT_EQ(mkdir(directory_.c_str(), 0700), 0);
  for (const mode_t mode : {0710, 0701, 0750, 0777, 01777}) {
    ASSERT_EQ(chmod(directory_.c_str(), mode), 0);
    const auto listener = Open(path_);
    EXPECT_EQ(ipc::ReasonOf(listener.status()), Reason::kAddressUnsafe) << mode;
    EXPECT_NE(TextOf(listener.status()).find("chmod 700"), std::string::npos);
  }
  ASSERT_EQ(chmod(directory_.c_str(), 0700), 0);
  EXPECT_TRUE(Open(path_).ok());
}

TEST_F(ListenerTest, RefusesADirectoryThatIsALinkOrAFileOrCannotBeMade) {
  ASSERT_EQ(mkdir(directory_.c_str(), 0700), 0);
  ASSERT_EQ(symlink(directory_.c_str(), (root_ + "/link").c_str()), 0);
  std::ofstream(root_ + "/file") << "";
  for (const char* name : {"/link/a.sock", "/file/a.sock", "/no/such/a.sock"}) {
    const auto listener = Open(root_ + name);
    EXPECT_EQ(ipc::ReasonOf(listener.status()), Reason::kAddressUnsafe) << name;
    EXPECT_NE(TextOf(listener.status()).find("--listen unix:DIR/agent.sock"), std::string::npos);
  }
}

TEST_F(ListenerTest, RefusesOtherUsersAndSaysSo) {
  auto listener = Listener::Open({.addresses = {"unix:" + path_},
                                  .user = static_cast<uid_t>(geteuid() + 1),
                                  .refusal_ms_max = std::chrono::milliseconds(50)});
  ASSERT_TRUE(listener.ok()) << listener.status();
  Start(**listener);
  const Socket client = Socket::Unix();
  ASSERT_TRUE(client.Connect(path_));
  EXPECT_NE(client.ReadAll().find("serves uid " + std::to_string(geteuid() + 1) + " only"),
            std::string::npos);
  EXPECT_EQ((*listener)->counts().refused_user, 1u);
  EXPECT_EQ((*listener)->counts().accepted, 0u);
}

TEST_F(ListenerTest, TellsAConnectionBeyondTheLimit) {
  const auto listener = Listen(2);
  Start(*listener);
  Socket first = Socket::Unix();
  const Socket second = Socket::Unix();
  ASSERT_TRUE(first.Connect(path_));
  ASSERT_TRUE(second.Connect(path_));
  ASSERT_TRUE(WaitForTaken(2));
  // It says nothing, and is told all the same when its time is over.
  const Socket third = Socket::Unix();
  ASSERT_TRUE(third.Connect(path_));
  EXPECT_NE(third.ReadAll().find("as many connections as it may have: 2 "), std::string::npos);
  EXPECT_EQ(listener->counts().refused_limit, 1u);

  // When one has ended there is room again.
  {
    const std::lock_guard lock(mutex_);
    taken_.front().Close();
  }
  const Socket fourth = Socket::Unix();
  ASSERT_TRUE(fourth.Connect(path_));
  ASSERT_TRUE(WaitForTaken(3));
}

TEST_F(ListenerTest, ReadsOnWhenAClientIsRefused) {
  const auto listener = RefuseAll(1);
  Start(*listener);
  const Socket client = Socket::Unix();
  ASSERT_TRUE(client.Connect(path_));
  // More than its socket holds.
  const std::string request = "GET / HTTP/1.1\r\n" + std::string(1 << 20, 'x');
  ASSERT_EQ(send(client.get(), request.data(), request.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(request.size()));
  EXPECT_NE(client.ReadAll().find("as many connections as it may have: 0 "), std::string::npos);
  // It still listens, until the client has closed its end too.
  EXPECT_EQ(send(client.get(), "x", 1, MSG_NOSIGNAL), 1);
}

TEST_F(ListenerTest, ListensToARefusedClientForALimitedTime) {
  const auto listener = Listen(0);
  Start(*listener);
  const Socket client = Socket::Unix();
  ASSERT_TRUE(client.Connect(path_));
  ASSERT_EQ(send(client.get(), "GET", 3, MSG_NOSIGNAL), 3);
  pollfd wait = {client.get(), 0, 0};
  EXPECT_EQ(poll(&wait, 1, kLimitMs), 1);
  EXPECT_NE(wait.revents & POLLHUP, 0);
}

TEST_F(ListenerTest, AnswersARefusedClientUntilItCloses) {
  const auto listener = RefuseAll(1);
  Start(*listener);
  const Socket client = Socket::Unix();
  ASSERT_TRUE(client.Connect(path_));
  EXPECT_EQ(client.ReadFrames(1), (std::vector<Frame>{{kSettings, 0}}));
  client.Write(kPreface + HeadersOf(1));
  EXPECT_EQ(client.ReadFrames(1), (std::vector<Frame>{{kHeaders, 1}}));
  client.Write(HeadersOf(3) + HeadersOf(5));
  EXPECT_EQ(client.ReadFrames(2), (std::vector<Frame>{{kHeaders, 3}, {kHeaders, 5}}));
  ASSERT_EQ(shutdown(client.get(), SHUT_WR), 0);
  EXPECT_EQ(client.ReadAll(), "");
}

TEST_F(ListenerTest, AsksARefusedClientToLeaveAndWaitsForItALimitedTime) {
  const auto listener = Listen(0);
  const Socket client = Socket::Unix();
  ASSERT_TRUE(client.Connect(path_));
  client.Write(kPreface + HeadersOf(1));
  const auto begin = std::chrono::steady_clock::now();
  Start(*listener);
  EXPECT_EQ(client.ReadFrames(4),
            (std::vector<Frame>{
                {kSettings, 0}, {kHeaders, 1}, {kGoAway, 0, 0x7FFFFFFF}, {kGoAway, 0, 1}}));
  EXPECT_EQ(client.ReadAll(), "");
  // Once to hear, and once more to leave.
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(2 * 50));
}

TEST_F(ListenerTest, ListensToALimitedNumberOfRefusedClients) {
  const auto listener = RefuseAll(2);
  Start(*listener);
  const Socket first = Socket::Unix(), second = Socket::Unix(), third = Socket::Unix();
  for (const Socket* client : {&first, &second, &third}) ASSERT_TRUE(client->Connect(path_));
  // The oldest has made room.
  EXPECT_NE(first.ReadAll().find("as many connections as it may have: 0 "), std::string::npos);
  for (const Socket* client : {&second, &third}) {
    ASSERT_EQ(send(client->get(), "GET", 3, MSG_NOSIGNAL), 3);
    EXPECT_NE(client->ReadAll().find("as many connections as it may have: 0 "), std::string::npos);
  }
}

TEST_F(ListenerTest, GoesOnWhenThereAreDescriptorsAgain) {
  const auto listener = Listen();
  Start(*listener);
  const Socket client = Socket::Unix();
  rlimit limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  // Nothing above 2 is free to be taken. (Nor for UBSan, which wants some to look at an object.)
  rlimit none = limit;
  none.rlim_cur = 3;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  ASSERT_TRUE(client.Connect(path_));
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(kLimitMs);
  while (listener->counts().pauses == 0 && std::chrono::steady_clock::now() < end) {
    poll(nullptr, 0, 1);
  }
  EXPECT_EQ(listener->counts().pauses, 1u);
  EXPECT_EQ(listener->counts().accepted, 0u);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_TRUE(WaitForTaken(1));
}

TEST_F(ListenerTest, RemovesItsSocketsAndFreesItsLock) {
  auto listener = Listen();
  Start(*listener);
  listener->Stop();
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_TRUE(std::filesystem::exists(path_ + ".lock"));
  EXPECT_NE(Listen(), nullptr);
}

TEST_F(ListenerTest, LeavesASocketThatIsNotItsOwn) {
  auto listener = Listen();
  ASSERT_EQ(unlink(path_.c_str()), 0);
  const Socket other = Socket::Unix();
  ASSERT_TRUE(other.Bind(path_));
  listener->Stop();
  EXPECT_TRUE(std::filesystem::exists(path_));
}

TEST_F(ListenerTest, GivesUpTheFirstSocketIfTheSecondIsRefused) {
  ASSERT_EQ(mkdir(directory_.c_str(), 0700), 0);
  std::ofstream(root_ + "/file") << "";
  EXPECT_FALSE(
      Listener::Open({.addresses = {"unix:" + path_, "unix:" + root_ + "/file"}, .user = geteuid()})
          .ok());
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_NE(Listen(), nullptr);
}

}  // namespace
}  // namespace deka::server
