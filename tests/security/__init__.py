"""What an attacker would try, each through the entrance that he would use."""
