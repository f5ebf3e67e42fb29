// deka-keeper AGENT ARG...: runs AGENT with ARG..., and another one after each that dies. keeper.h
// says how.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "keeper/keeper.h"

namespace deka::keeper {
namespace {

struct Limit {
  const char* name;
  int64_t Keeper::Options::*field;
};

// --NAME=NUMBER before AGENT. For tests.
constexpr Limit kLimits[] = {
    {"look_ms", &Keeper::Options::look_ms},
    {"looks_max", &Keeper::Options::looks_max},
    {"ready_ms_max", &Keeper::Options::ready_ms_max},
    {"mail_ms_max", &Keeper::Options::mail_ms_max},
    {"stop_ms_max", &Keeper::Options::stop_ms_max},
    {"end_ms_max", &Keeper::Options::end_ms_max},
    {"crash_window_ms", &Keeper::Options::crash_window_ms},
    {"crash_pause_ms", &Keeper::Options::crash_pause_ms},
    {"descriptors", &Keeper::Options::descriptors},
};

bool TakeLimit(const char* argument, Keeper::Options& options) {
  for (const Limit& limit : kLimits) {
    const size_t length = strlen(limit.name);
    if (strncmp(argument, limit.name, length) != 0 || argument[length] != '=') continue;
    char* end;
    options.*limit.field = strtoll(argument + length + 1, &end, 10);
    return end != argument + length + 1 && *end == '\0';
  }
  return false;
}

int Main(char** arguments) {
  Keeper::Options options;
  char** command = arguments;
  if (*command != nullptr) ++command;
  bool usable = true;
  for (; usable && *command != nullptr && strncmp(*command, "--", 2) == 0; ++command) {
    usable = TakeLimit(*command + 2, options);
  }
  if (!usable || *command == nullptr) {
    fprintf(stderr, "usage: deka-keeper AGENT ARG...\n");
    return 2;
  }
  Keeper keeper(options, command, environ);
  return keeper.Run();
}

}  // namespace
}  // namespace deka::keeper

int main(int, char** arguments) { return deka::keeper::Main(arguments); }
