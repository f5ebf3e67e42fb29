// What deka-bridge is, in a minute: `./bazelw run //:demo`.
//
//   demo -- starts --> deka-agent -- forks --> worker (Node), native (C++)
//        -- starts --> visitor: this program again, a process that has forked nobody; it talks to
//                      both through the agent, sees both sides of each conversation, and ends it
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sdk/cpp/client.h"
#include "sdk/examples/demo/visit.h"
#include "tools/cpp/runfiles/runfiles.h"

namespace deka::examples {
namespace {

using bazel::tools::cpp::runfiles::Runfiles;

constexpr std::chrono::seconds kPatience{30};

// A program that runs beside this one, in its process group, with its terminal.
class Program {
 public:
  // `output`: where stdout and stderr go; empty: where those of this process go.
  static absl::StatusOr<Program> Start(std::vector<std::string> command,
                                       const std::string& output = {}) {
    std::vector<char*> arguments;
    for (std::string& word : command) arguments.push_back(word.data());
    arguments.push_back(nullptr);

    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    const absl::Cleanup free_files = [&] { posix_spawn_file_actions_destroy(&files); };
    if (!output.empty()) {
      posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, output.c_str(),
                                       O_WRONLY | O_CREAT | O_TRUNC, 0600);
      posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
    }
    // This process ignores a terminal's Ctrl-C, to end the others and tidy up; they do not.
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    const absl::Cleanup free_attributes = [&] { posix_spawnattr_destroy(&attributes); };
    sigset_t defaults;
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGINT);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);

    Program program;
    if (const int error = posix_spawn(&program.pid_, arguments[0], &files, &attributes,
                                      arguments.data(), environ);
        error != 0) {
      return absl::ErrnoToStatus(error, fmt::format("{} cannot be started", command[0]));
    }
    return program;
  }

  bool Ended() {
    if (pid_ != 0 && waitpid(pid_, &status_, WNOHANG) == pid_) pid_ = 0;
    return pid_ == 0;
  }

  // Its exit code, 128 + n after signal n.
  int Wait() {
    if (pid_ != 0) waitpid(pid_, &status_, 0);
    pid_ = 0;
    return WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
  }

  int Stop() {
    if (pid_ != 0) kill(pid_, SIGTERM);
    return Wait();
  }

 private:
  pid_t pid_ = 0;  // 0 once it is waited for
  int status_ = 0;
};

// Waits until the agent serves.
absl::StatusOr<Client> Connect(Program& agent, const std::string& target) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    absl::StatusOr<Client> client = Client::Connect({.target = target, .name = "demo"});
    if (client.ok() || std::chrono::steady_clock::now() > deadline) return client;
    if (agent.Ended()) return absl::UnavailableError("the agent ended at once");
    poll(nullptr, 0, /*ms=*/10);
  }
}

absl::StatusOr<Child> Fork(const Client& client, const std::string& name, std::string_view what,
                           const std::string& program, std::vector<std::string> args) {
  absl::StatusOr<v1::ChildSpec> spec = SpecOf(program, std::move(args));
  if (!spec.ok()) return spec.status();
  spec->set_display_name(name);
  absl::StatusOr<Child> child = client.Fork(*std::move(spec));
  if (child.ok()) {
    const bool node = child->description().dialect() == v1::DIALECT_NODE;
    fmt::print("  {:<8} pid {:<8} {:<15} a line is {}\n", name, child->pid(), what,
               node ? R"({"ping":1})" : R"({"cmd":"NODE_HANDLE","msg":{"ping":1}})");
  }
  return child;
}

absl::Status Play(const Runfiles& files, const std::string& self, const std::string& directory) {
  const std::string target = fmt::format("unix:{}/agent.sock", directory);
  absl::StatusOr<Program> agent =
      Program::Start({files.Rlocation("deka_bridge/server/deka-agent"), "--listen", target},
                     directory + "/agent.log");
  if (!agent.ok()) return agent.status();
  const absl::Cleanup stop = [&] { agent->Stop(); };

  const absl::StatusOr<Client> client = Connect(*agent, target);
  if (!client.ok()) return client.status();
  fmt::print(
      "A program that forks children owns their messages: nobody else can see one, send\n"
      "one, or end the conversation. Here an agent is the parent, and lets a visitor in.\n\n"
      "The agent ({}) has forked two children, who\n"
      "know nothing of all this. Each has a socket that nobody but the agent can reach,\n"
      "and a message is a line on it:\n\n",
      target);
  const auto worker = Fork(*client, "worker", "node worker.js", "node",
                           {files.Rlocation("deka_bridge/sdk/examples/worker.js")});
  if (!worker.ok()) return worker.status();
  const auto native =
      Fork(*client, "native", "C++ program", files.Rlocation("deka_bridge/sdk/examples/child"), {});
  if (!native.ok()) return native.status();

  fmt::print(
      "\nThe visitor is a process that forked neither of them. It asks each of them and is\n"
      "asked by each, ends the conversation, and sees it all from the first event on:\n\n");
  std::fflush(stdout);
  absl::StatusOr<Program> visitor = Program::Start({self, "--visit", target, "worker", "native"});
  if (!visitor.ok()) return visitor.status();
  if (const int code = visitor->Wait(); code != 0) {
    return absl::AbortedError(fmt::format("the visitor ended with code {}", code));
  }
  if (const int code = agent->Stop(); code != 0) {
    return absl::AbortedError(fmt::format("the agent ended with code {}", code));
  }
  fmt::print(
      "The agent has ended, and nothing is left of it. To do the same by hand, see\n"
      "\"A quick tour\" in README.md.\n");
  return absl::OkStatus();
}

int Fail(std::string_view who, const absl::Status& status) {
  std::fflush(stdout);
  fmt::print(stderr, "{}: {}\n", who, std::string(status.message()));
  return 1;
}

int Main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv, argv + argc);
  if (argc >= 3 && arguments[1] == "--visit") {
    const absl::Status status = Visit(arguments[2], {arguments.begin() + 3, arguments.end()});
    return status.ok() ? 0 : Fail("visitor", status);
  }

  std::string error;
  const std::unique_ptr<Runfiles> files(Runfiles::Create(arguments[0], &error));
  if (files == nullptr) return Fail("demo", absl::NotFoundError(error));
  std::string directory = "/tmp/deka-demo-XXXXXX";
  if (mkdtemp(directory.data()) == nullptr) {
    return Fail("demo", absl::ErrnoToStatus(errno, "no temporary directory"));
  }
  signal(SIGINT, SIG_IGN);
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  const absl::Status status = Play(*files, self, directory);
  int code = 0;
  if (!status.ok()) {
    code = Fail("demo", status);
    std::ifstream log(directory + "/agent.log");
    fmt::print(stderr, "{}", std::string(std::istreambuf_iterator<char>(log), {}));
  }
  std::filesystem::remove_all(directory);
  return code;
}

}  // namespace
}  // namespace deka::examples

int main(int argc, char** argv) { return deka::examples::Main(argc, argv); }
