#include "keeper/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

namespace deka::keeper {

void Say(Level level, const char* format, ...) {
  static constexpr const char* kLevels[] = {"info", "warning", "error"};
  char line[1024];
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  tm local = {};
  localtime_r(&now.tv_sec, &local);
  auto length = static_cast<size_t>(snprintf(
      line, sizeof(line), "%02d:%02d:%02d.%03ld %d deka-keeper %s ", local.tm_hour, local.tm_min,
      local.tm_sec, now.tv_nsec / 1000000, getpid(), kLevels[static_cast<int>(level)]));
  va_list arguments;
  va_start(arguments, format);
  const int written = vsnprintf(line + length, sizeof(line) - length - 1, format, arguments);
  va_end(arguments);
  if (written > 0) length += static_cast<size_t>(written);
  if (length > sizeof(line) - 2) length = sizeof(line) - 2;
  for (size_t i = 0; i < length; ++i) {
    if (static_cast<unsigned char>(line[i]) < ' ' || line[i] == 0x7f) line[i] = '?';
  }
  line[length++] = '\n';

  pollfd room{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
  if (poll(&room, 1, 0) != 1) return;
  [[maybe_unused]] const ssize_t unheard = write(STDERR_FILENO, line, length);
}

int64_t Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
}

void HoldStandardDescriptors() {
  for (int descriptor = STDIN_FILENO; descriptor <= STDERR_FILENO; ++descriptor) {
    if (fcntl(descriptor, F_GETFD) >= 0) continue;
    open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY);
  }
}

bool IsTraced(pid_t pid) {
  char path[32];
  snprintf(path, sizeof(path), "/proc/%d/status", pid);
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  char text[4096];
  const ssize_t length = read(file, text, sizeof(text) - 1);
  close(file);
  if (length <= 0) return false;
  text[length] = '\0';
  const char* line = strstr(text, "\nTracerPid:");
  return line != nullptr && atoi(line + strlen("\nTracerPid:")) != 0;
}

bool IsOwnEnd(int status) {
  if (WIFEXITED(status)) return true;
  switch (WTERMSIG(status)) {
    case SIGSEGV:
    case SIGBUS:
    case SIGILL:
    case SIGFPE:
    case SIGABRT:
    case SIGTRAP:
    case SIGSYS:
      return true;
    default:
      return false;
  }
}

Ending::Ending(int status) {
  if (WIFEXITED(status)) {
    snprintf(text, sizeof(text), "exited with code %d", WEXITSTATUS(status));
  } else {
    snprintf(text, sizeof(text), "was ended by signal %d", WTERMSIG(status));
  }
}

}  // namespace deka::keeper
