package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/internal/store/sealed"
)

func newKeygen() *cobra.Command {
	var add bool
	var promote, drop string
	cmd := &cobra.Command{
		Use:   "keygen [flags] [FILE]",
		Short: "Make a ring of sealing keys, or change one",
		Long: `Make a ring of the keys with which a broker seals what it keeps in a store, and
print it. All replicas of a broker need the same ring. Who has it can open what
is in the store: keep it where the client secrets are kept.

To change the key of a ring that is in use, add one, wait, promote it, wait, and
drop the old one; after each step this command says how long. A broker reads its
ring again by itself. FILE is replaced at once, by one with mode 0600 that
belongs to the user who runs this command.`,
		Example: `  (umask 077 && broker keygen > ring.json)
  broker keygen --add ring.json
  broker keygen --promote 1f2e3d4c ring.json
  broker keygen --drop 0a1b2c3d ring.json`,
		Args: func(_ *cobra.Command, args []string) error {
			switch changes := add || promote != "" || drop != ""; {
			case changes && len(args) != 1:
				return errors.New("which ring is to be changed? Name its file")
			case !changes && len(args) != 0:
				return errors.New("a new ring is printed: say what to change in a file with --add, --promote ID or --drop ID, or redirect the output to it")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case add:
				return changeRing(cmd, args[0], addKey)
			case promote != "":
				return changeRing(cmd, args[0], func(ring *sealed.Ring, path string) (*sealed.Ring, string, error) {
					return promoteKey(ring, path, promote)
				})
			case drop != "":
				return changeRing(cmd, args[0], func(ring *sealed.Ring, _ string) (*sealed.Ring, string, error) {
					return dropKey(ring, drop)
				})
			}
			_, err := cmd.OutOrStdout().Write(sealed.GenerateRing().Reveal())
			return err
		},
	}
	cmd.Flags().BoolVar(&add, "add", false, "add a key to the ring in FILE, which opens but does not seal yet")
	cmd.Flags().StringVar(&promote, "promote", "", "seal with the key of this id from now on")
	cmd.Flags().StringVar(&drop, "drop", "", "take the key of this id out of the ring")
	cmd.MarkFlagsMutuallyExclusive("add", "promote", "drop")
	return cmd
}

// changeRing changes the ring in a file and says what is to be done next.
func changeRing(cmd *cobra.Command, path string, change func(ring *sealed.Ring, path string) (*sealed.Ring, string, error)) error {
	ring, err := sealed.ReadRing(path)
	if err != nil {
		return err
	}
	changed, next, err := change(ring, path)
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
Next: bring the file to every replica, wait 20 s until all have read it, and run
  broker keygen --promote %s %s`, id, ring.Primary(), id, path), nil
}

func promoteKey(ring *sealed.Ring, path, id string) (*sealed.Ring, string, error) {
	changed, err := ring.Promote(id)
	if err != nil {
		return nil, "", err
	}
	return changed, fmt.Sprintf(`Key %s seals from now on; key %s still opens.
Next: bring the file to every replica, wait 20 s until all have read it and then as
long as the longest lifetime of a token (24 h are enough for any; a minute is the least), and run
  broker keygen --drop %s %s`, id, ring.Primary(), ring.Primary(), path), nil
}

func dropKey(ring *sealed.Ring, id string) (*sealed.Ring, string, error) {
	changed, err := ring.Drop(id)
	if err != nil {
		return nil, "", err
	}
	return changed, fmt.Sprintf(`Dropped key %s. What is still sealed with it counts as absent.
Next: bring the file to every replica. Nothing else is to be done.`, id), nil
}
