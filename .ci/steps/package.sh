# The crate as it would be published: the manifest is complete, and what is packed builds on its own.
cargo package --locked --allow-dirty --quiet
cargo package --locked --allow-dirty --list
