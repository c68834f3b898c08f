module github.com/belay-storage/belay

go 1.26
