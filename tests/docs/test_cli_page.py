"""docs/reference/cli.md is what the commands say of themselves."""

from kits import cli_page


def test_the_page_is_the_help_of_the_commands() -> None:
    # word by word: versions of click break lines at different places, and write choices differently
    assert cli_page.PAGE.read_text().casefold().split() == cli_page.text().casefold().split(), (
        "python tests/kits/cli_page.py writes the page"
    )


def test_every_command_says_its_exit_codes() -> None:
    for name, text in cli_page.commands(cli_page.cli, "fluidfast", cli_page.SETTINGS):
        if "dead " not in name:
            assert "exit codes:" in text, name
        assert max(map(len, text.splitlines())) <= cli_page.WIDTH, name
