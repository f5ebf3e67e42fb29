// What dekactl says of its own use: its pages of help, and what is wrong with a command line.
#ifndef SDK_DEKACTL_HELP_H_
#define SDK_DEKACTL_HELP_H_

#include <string>

#include "CLI/CLI.hpp"

namespace deka::dekactl {

// Pages of 80 columns. The first line of a command's description stands in the list of commands,
// all of it on its own page.
class Help : public CLI::Formatter {
 public:
  Help();

  std::string make_description(const CLI::App* app) const override;
  std::string make_footer(const CLI::App* app) const override;
  std::string make_subcommand(const CLI::App* command) const override;
  std::string make_option_usage(const CLI::Option* argument) const override;
  std::string make_option_opts(const CLI::Option* option) const override;
  std::string make_option_desc(const CLI::Option* option) const override;
};

// What is wrong, and where to read how it is right.
std::string UsageError(const CLI::App& app, const CLI::ParseError& error);

// The command that was named; `app` itself if none was.
const CLI::App& ChosenCommand(const CLI::App& app);

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_HELP_H_
