#include "sdk/dekactl/help.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "fmt/ranges.h"

namespace deka::dekactl {
namespace {

constexpr size_t kPageWidth = 80;
constexpr size_t kOptionWidth = 26;
constexpr size_t kCommandWidth = 14;

// Each line of `text` in as many as it needs.
std::string Wrapped(std::string_view text, size_t width) {
  std::string wrapped;
  size_t used = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find_first_of(" \n", 1), text.size());
    std::string_view word = text.substr(0, end);
    text.remove_prefix(end);
    if (word.front() == '\n') {
      used = 0;
    } else if (word.front() == ' ' && used + word.size() > width) {
      wrapped += '\n';
      word.remove_prefix(1);
      used = 0;
    }
    wrapped += word;
    used += word.front() == '\n' ? word.size() - 1 : word.size();
  }
  return wrapped;
}

std::vector<std::string> CommandNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

std::string WhatIsWrong(const CLI::App& app, const CLI::ParseError& error) {
  const std::string said = error.what();
  const CLI::App& chosen = ChosenCommand(app);
  const bool no_command = &chosen == &app;
  std::vector<std::string> unknown = chosen.remaining();
  if (unknown.empty()) {
    unknown = app.remaining();
  }
  const bool extras = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr;
  if (!unknown.empty() && (no_command || extras)) {
    if (unknown.front().starts_with('-')) {
      return unknown.front() + " is no option" +
             (chosen.get_prefix_command() ? "; write what is the program's behind --" : "");
    }
    return no_command ? fmt::format("{} is no command; write one of {}", unknown.front(),
                                    fmt::join(CommandNames(app), ", "))
                      : unknown.front() + " is one argument too many";
  }
  if (no_command && dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    return fmt::format("which command? Write one of {}", fmt::join(CommandNames(app), ", "));
  }
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) {
    const std::string option = said.substr(0, said.find(':'));
    return said.find("At Most") == std::string::npos ? option + " is given without a value"
                                                     : option + " is given twice; give it once";
  }
  return said;
}

}  // namespace

const CLI::App& ChosenCommand(const CLI::App& app) {
  const auto chosen = app.get_subcommands();
  return chosen.empty() ? app : *chosen.front();
}

Help::Help() {
  column_width(kOptionWidth);
  label("Positionals", "Arguments");
  label("SUBCOMMAND", "COMMAND");
}

std::string Help::make_description(const CLI::App* app) const {
  return Wrapped(app->get_description(), kPageWidth) + "\n\n";
}

std::string Help::make_footer(const CLI::App* app) const {
  return Wrapped(app->get_footer(), kPageWidth) + "\n";
}

std::string Help::make_subcommand(const CLI::App* command) const {
  const std::string description = command->get_description();
  return fmt::format("  {:<{}}{}\n", command->get_name(), kCommandWidth - 2,
                     description.substr(0, description.find('\n')));
}

std::string Help::make_option_usage(const CLI::Option* argument) const {
  return argument->get_type_name() == "PROGRAM" ? "-- PROGRAM [ARGS...]"
                                                : CLI::Formatter::make_option_usage(argument);
}

std::string Help::make_option_opts(const CLI::Option* option) const {
  if (!option->get_option_text().empty()) {
    return " " + option->get_option_text();
  }
  if (option->get_type_size() == 0) {
    return "";
  }
  const bool many = option->get_expected_max() == CLI::detail::expected_max_vector_size;
  return fmt::format(" {}{}", option->get_type_name(), many ? " ..." : "");
}

std::string Help::make_option_desc(const CLI::Option* option) const {
  return Wrapped(option->get_description(), kPageWidth - kOptionWidth);
}

std::string UsageError(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& chosen = ChosenCommand(app);
  return fmt::format("{}; see {} {}--help", WhatIsWrong(app, error), app.get_name(),
                     &chosen == &app ? "" : chosen.get_name() + " ");
}

}  // namespace deka::dekactl
