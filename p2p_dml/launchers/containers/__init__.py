"""All peers in containers of this machine, by docker and its compose."""
