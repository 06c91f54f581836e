"""The stack's parts: one ComponentResource a file. This folder, not its parent, is a package: `pulumi` is the SDK."""
