package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/internal/store/sealed"
)

func newRing() *cobra.Command {
	return newGroup(&cobra.Command{
		Use:   "ring",
		Short: "Make a ring of sealing keys, or change one",
		Long: `Create or change the ring of keys with which a broker seals values in a store. All
replicas of a broker need the same ring. The ring opens every value in the store:
protect it like the client secrets.

To change the key of a ring that is in use, add a key, wait, promote it, wait, and drop
the old one; after each step the command prints how long. A broker reloads its ring
automatically. FILE is replaced in one step, by a file with mode 0600 that belongs to
the user of the command.`,
		Example: `  (umask 077 && broker ring new > ring.json)
  broker ring add ring.json
  broker ring promote ring.json 1f2e3d4c
  broker ring drop ring.json 0a1b2c3d`,
		SuggestFor: []string{"keygen"},
	}, newRingNew(), newRingAdd(), newRingPromote(), newRingDrop())
}

func newRingNew() *cobra.Command {
	return &cobra.Command{
		Use:     "new",
		Short:   "Print a new ring with one key",
		Example: `  (umask 077 && broker ring new > ring.json)`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errors.New("a new ring is printed, not written to a file: redirect the output, as with (umask 077 && broker ring new > ring.json)")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(sealed.GenerateRing().Reveal())
			return err
		},
	}
}

func newRingAdd() *cobra.Command {
	return &cobra.Command{
		Use:     "add FILE",
		Short:   "Add a key to a ring, which opens values but does not seal yet",
		Example: `  broker ring add ring.json`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeRing(cmd, args[0], addKey)
		},
	}
}

func newRingPromote() *cobra.Command {
	return &cobra.Command{
		Use:     "promote FILE ID",
		Short:   "Seal with a key of the ring from now on",
		Example: `  broker ring promote ring.json 1f2e3d4c`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeRing(cmd, args[0], func(ring *sealed.Ring, path string) (*sealed.Ring, string, error) {
				return promoteKey(ring, path, args[1])
			})
		},
	}
}

func newRingDrop() *cobra.Command {
	return &cobra.Command{
		Use:     "drop FILE ID",
		Short:   "Remove a key from a ring",
		Example: `  broker ring drop ring.json 0a1b2c3d`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeRing(cmd, args[0], func(ring *sealed.Ring, _ string) (*sealed.Ring, string, error) {
				return dropKey(ring, args[1])
			})
		},
	}
}

// changeRing changes the ring in a file and prints the next step.
func changeRing(cmd *cobra.Command, path string, apply func(ring *sealed.Ring, path string) (*sealed.Ring, string, error)) error {
	ring, err := sealed.ReadRing(path)
	if err != nil {
		return err
	}
	changed, next, err := apply(ring, path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := sealed.WriteRing(path, changed); err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.ErrOrStderr(), next)
	return err
}

func addKey(ring *sealed.Ring, path string) (*sealed.Ring, string, error) {
	changed, id := ring.Add()
	return changed, fmt.Sprintf(`Added key %s. Key %s still seals.
Next: copy the file to every replica, wait 20 s until all have read it, and run
  broker ring promote %s %s`, id, ring.Primary(), path, id), nil
}

func promoteKey(ring *sealed.Ring, path, id string) (*sealed.Ring, string, error) {
	changed, err := ring.Promote(id)
	if err != nil {
		return nil, "", err
	}
	return changed, fmt.Sprintf(`Key %s seals from now on; key %s still opens.
Next: copy the file to every replica, wait 20 s until all have read it and then as
long as the longest lifetime of a token (24 h are enough for any; a minute is the least), and run
  broker ring drop %s %s`, id, ring.Primary(), path, ring.Primary()), nil
}

func dropKey(ring *sealed.Ring, id string) (*sealed.Ring, string, error) {
	changed, err := ring.Drop(id)
	if err != nil {
		return nil, "", err
	}
	return changed, fmt.Sprintf(`Dropped key %s. What is still sealed with it counts as absent.
Next: copy the file to every replica. No further step is needed.`, id), nil
}
