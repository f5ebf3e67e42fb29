// ChooseDialect: what a program is.

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <system_error>

#include "ipc/dialect.h"

namespace deka::ipc {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kRuntimes[] = {"node", "nodejs", "bun", "deno"};

// Programs whose purpose is to start another one, which the name does not tell.
constexpr std::string_view kStarters[] = {
    // clang-format off
    "ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "mksh", "sh", "tcsh", "zsh",
    "chroot", "chrt", "direnv", "doas", "dumb-init", "env", "fakeroot", "firejail", "flock", "gdb",
    "ionice", "ltrace", "make", "nice", "nohup", "nsenter", "numactl", "perf", "prlimit", "runuser",
    "script", "setarch", "setpriv", "setsid", "stdbuf", "strace", "su", "sudo", "systemd-run",
    "taskset", "time", "timeout", "tini", "unbuffer", "unshare", "valgrind", "watch", "xargs",
    // clang-format on
};

constexpr std::string_view kBlanks = " \t";

template <size_t n>
bool IsOneOf(std::string_view name, const std::string_view (&names)[n]) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

std::string NameOf(const std::string& path) { return fs::path(path).filename().string(); }

// `path` without symbolic links; `path` itself if it cannot be followed.
std::string Resolved(const std::string& path) {
  std::error_code error;
  const fs::path resolved = fs::canonical(path, error);
  return error ? path : resolved.string();
}

bool IsExecutable(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) &&
         access(path.c_str(), X_OK) == 0;
}

// The file that exec starts for `program`; unset if there is none.
std::optional<std::string> FindProgram(std::string_view program, std::string_view path,
                                       std::string_view cwd) {
  const fs::path directory(cwd);
  if (program.empty()) return std::nullopt;
  if (program.find('/') != std::string_view::npos) {
    std::string file = (directory / program).string();
    if (!IsExecutable(file)) return std::nullopt;
    return file;
  }
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find(':', begin), path.size());
    // An empty piece is the working directory.
    std::string file = (directory / path.substr(begin, end - begin) / program).string();
    if (IsExecutable(file)) return file;
    begin = end + 1;
  }
  return std::nullopt;
}

std::string_view Trim(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(kBlanks), text.size()));
  return text.substr(0, text.find_last_not_of(kBlanks) + 1);
}

// Takes the first word, at blanks, off `text`.
std::string_view TakeWord(std::string_view& text) {
  text = Trim(text);
  const std::string_view word = text.substr(0, text.find_first_of(kBlanks));
  text.remove_prefix(word.size());
  return word;
}

// What stands behind the #! of a script, empty if the file is none. The kernel reads 256 bytes.
std::string Interpreter(const std::string& file) {
  const int descriptor = open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return "";
  char bytes[256];
  const ssize_t count = read(descriptor, bytes, sizeof(bytes));
  close(descriptor);
  std::string_view line(bytes, static_cast<size_t>(std::max<ssize_t>(count, 0)));
  if (!line.starts_with("#!")) return "";
  return std::string(Trim(line.substr(2, line.find('\n') - 2)));
}

// The program that env starts when a #! line gives it `argument`, which is one argument however
// many words it has; empty if that cannot be told.
std::string_view ProgramOfEnv(std::string_view argument) {
  if (!argument.starts_with('-')) return argument;
  std::string_view rest = argument;
  const std::string_view option = TakeWord(rest);
  constexpr std::string_view kSplit = "--split-string=";
  if (option.starts_with(kSplit)) {
    rest = argument.substr(kSplit.size());
  } else if (const size_t split = option.find('S');
             split != std::string_view::npos && !option.starts_with("--")) {
    rest = argument.substr(split + 1);
  } else {
    return "";
  }
  while (!Trim(rest).empty()) {
    std::string_view word = TakeWord(rest);
    if (word == "-u" || word == "-C" || word == "--unset" || word == "--chdir") {
      TakeWord(rest);
    } else if (!word.starts_with('-') && word.find('=') == std::string_view::npos) {
      return word;
    }
  }
  return "";
}

}  // namespace

DialectChoice ChooseDialect(std::string_view program, std::string_view path, std::string_view cwd) {
  constexpr std::string_view kExpects = "node, nodejs, bun or deno";
  constexpr int kScriptsMax = 5;  // the kernel follows no more

  std::string name(program);
  std::string reason;
  for (int scripts = 0; scripts <= kScriptsMax; ++scripts) {
    const std::string_view which = scripts == 0 ? "" : ", which";
    const std::optional<std::string> found = FindProgram(name, path, cwd);
    if (!found.has_value()) {
      return {Dialect::kDeka, fmt::format("{}{}{} is not found", reason, name, which)};
    }
    reason += *found;
    const std::string resolved = Resolved(*found);
    if (IsOneOf(NameOf(*found), kRuntimes)) {
      return {Dialect::kNode, fmt::format("{}{} is {}", reason, which, NameOf(*found))};
    }
    if (IsOneOf(NameOf(resolved), kRuntimes)) {
      return {Dialect::kNode, fmt::format("{}{} leads to {}, which is {}", reason, which, resolved,
                                          NameOf(resolved))};
    }
    const std::string line = Interpreter(resolved);
    if (line.empty()) {
      if (IsOneOf(NameOf(*found), kStarters) || IsOneOf(NameOf(resolved), kStarters)) {
        return {Dialect::kDeka, fmt::format("{}{} starts other programs, and which ones is not "
                                            "known: give the dialect node if it starts {}",
                                            reason, which, kExpects)};
      }
      return {Dialect::kDeka, fmt::format("{}{} is not {}", reason, which, kExpects)};
    }
    std::string_view rest = line;
    name = TakeWord(rest);
    const std::string_view argument = Trim(rest);
    if (NameOf(name) == "env" && !ProgramOfEnv(argument).empty()) {
      name = ProgramOfEnv(argument);
    } else if (name.find('/') == std::string::npos) {
      name.insert(0, "./");  // the kernel does not look in PATH
    }
    reason += fmt::format("{} is run by ", which);
  }
  return {Dialect::kDeka, fmt::format("{}too many scripts", reason)};
}

}  // namespace deka::ipc
