package main

import (
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/mirror"
	"github.com/belay-storage/belay/pkg/telemetry"
)

// Engine processes log as the server that starts them does; it tells them through these.
const (
	envLogFormat = "BELAY_LOG_FORMAT"
	envVerbosity = "BELAY_LOG_VERBOSITY"
)

func tellEngines(format string, verbosity int) error {
	if err := os.Setenv(envLogFormat, format); err != nil {
		return err
	}
	return os.Setenv(envVerbosity, strconv.Itoa(verbosity))
}

// newEngine is the process of one attached volume. The host starts it and hands it the device; nobody else can.
func newEngine() *cobra.Command {
	return &cobra.Command{
		Use: "engine VOLUME", Hidden: true, Short: "the engine process of one volume, started by belay host", GroupID: "roles",
		Args: oneVolume,
		RunE: func(cmd *cobra.Command, args []string) error {
			verbosity, _ := strconv.Atoi(os.Getenv(envVerbosity))
			format := os.Getenv(envLogFormat)
			if format == "" {
				format = telemetry.Text
			}
			log, err := telemetry.NewLogger(cmd.ErrOrStderr(), format, verbosity)
			if err != nil {
				return err
			}
			return mirror.RunEngine(cmd.Context(), version, cmd.InOrStdin(), cmd.OutOrStdout(), log.With("process", os.Getpid()))
		},
	}
}
