package main

import (
	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
)

// setRemote adds a remote to a repository, or points it elsewhere.
func setRemote(repo *git.Repository, name, u string) error {
	cfg, err := repo.Config()
	if err != nil {
		return err
	}
	cfg.Remotes[name] = &config.RemoteConfig{
		Name: name, URLs: []string{u}, Fetch: []config.RefSpec{config.RefSpec("+refs/heads/*:refs/remotes/" + name + "/*")},
	}
	return repo.SetConfig(cfg)
}
